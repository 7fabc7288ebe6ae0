"""What is known of a folder of images, which is kept in the cache so that asking again costs nothing."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from image_tree import make_image_tree, truncate

from rst.experiments.data import FolderFacts, folder_cache, folder_facts, open_folders
from rst.experiments.errors import InputError

LONG_AGO = 1_600_000_000


def folder_digest(root: str | Path, cache: Path) -> str | None:
    """The digest of a folder that is laid out like ImageNet."""
    return folder_facts("imagenet", root, cache).digest


def age(root: Path) -> Path:
    """Date all folders back, as if nothing had been changed in them for years."""
    for folder in [root, *root.rglob("*")]:
        os.utime(folder, (LONG_AGO, LONG_AGO))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return age(make_image_tree(tmp_path / "images"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "data" / "cache"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The roots whose files are listed during the test, one entry for each time."""
    roots: list[Path] = []

    def noted(name: str, root: Path) -> Any:
        roots.append(root)
        return open_folders(name, root)

    monkeypatch.setattr(folder_cache, "open_folders", noted)
    return roots


def test_it_is_the_digest_of_the_files(root: Path, cache: Path) -> None:
    assert folder_digest(root, cache) == open_folders("imagenet", root).digest


def test_the_files_are_listed_once_however_often_and_by_whatever_path_it_is_asked(
    root: Path, cache: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root.parent / "link").symlink_to(root)
    monkeypatch.chdir(root.parent)
    answers = {folder_digest(path, cache) for path in (root, str(root), "images", root.parent / "link")}
    assert len(answers) == 1
    assert len(opened) == 1


def test_the_answers_of_several_folders_are_kept_side_by_side(root: Path, cache: Path, opened: list[Path]) -> None:
    other = age(shutil.copytree(root, root.parent / "other"))
    for _ in range(2):
        folder_digest(root, cache)
        folder_digest(other, cache)
    assert len(opened) == 2


def test_a_copy_of_the_folder_has_the_same_digest(root: Path, cache: Path) -> None:
    copy = shutil.copytree(root, root.parent / "imagenet")
    assert folder_digest(copy, cache) == folder_digest(root, cache)


@pytest.mark.parametrize("change", ["added", "deleted", "renamed"])
def test_a_file_that_is_added_deleted_or_renamed_changes_the_digest(root: Path, cache: Path, change: str) -> None:
    before = folder_digest(root, cache)
    file = root / "train" / "n01" / "n01_0.JPEG"
    if change == "added":
        shutil.copy(file, file.with_name("new.JPEG"))
    elif change == "deleted":
        file.unlink()
    else:
        file.rename(file.with_name("new.JPEG"))
    assert folder_digest(root, cache) == open_folders("imagenet", root).digest != before


def test_two_changes_within_one_tick_of_the_file_systems_clock_are_both_seen(root: Path, cache: Path) -> None:
    folder = root / "train" / "n01"
    (folder / "n01_0.JPEG").rename(folder / "new.JPEG")
    changed = folder.stat().st_mtime_ns
    before = folder_digest(root, cache)
    (folder / "n01_1.JPEG").unlink()
    os.utime(folder, ns=(changed, changed))
    assert folder_digest(root, cache) == open_folders("imagenet", root).digest != before


def test_a_file_that_is_added_in_a_folder_below_a_class_folder_changes_the_digest(root: Path, cache: Path) -> None:
    below = root / "train" / "n01" / "more"
    below.mkdir()
    file = root / "train" / "n01" / "n01_0.JPEG"
    shutil.copy(file, below / "a.JPEG")
    before = folder_digest(age(root), cache)
    shutil.copy(file, below / "b.JPEG")
    assert folder_digest(root, cache) == open_folders("imagenet", root).digest != before


def test_two_folders_with_other_images_have_different_digests(root: Path, cache: Path) -> None:
    other = shutil.copytree(root, root.parent / "other")
    truncate(other / "val" / "n01" / "n01_0.JPEG")
    assert folder_digest(other, cache) != folder_digest(root, cache)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"x": 3}', "\0"])
def test_a_damaged_file_in_the_cache_is_replaced(root: Path, cache: Path, opened: list[Path], content: str) -> None:
    cache.mkdir(parents=True)
    file = cache / "folder_digests.json"
    file.write_text(content)
    expected = open_folders("imagenet", root).digest
    assert [folder_digest(root, cache) for _ in range(2)] == [expected, expected]
    assert len(opened) == 1
    assert list(json.loads(file.read_text())) == [str(root)]


def test_a_cache_that_cannot_be_written_is_no_error(root: Path, cache: Path) -> None:
    cache.parent.write_text("a file, not a folder")
    assert folder_digest(root, cache) == open_folders("imagenet", root).digest


def test_it_counts_the_classes_and_the_images_of_both_splits(root: Path, cache: Path) -> None:
    for _ in range(2):
        assert folder_facts("imagenet", root, cache) == FolderFacts(open_folders("imagenet", root).digest, 3, 30, 12)


def test_a_root_without_folders_of_images_is_refused_and_nothing_is_kept(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "train").mkdir()
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"^No ImageNet images \("):
            folder_digest(root, cache)
    assert not cache.exists()


def test_incomplete_folders_are_refused(root: Path, cache: Path) -> None:
    shutil.rmtree(root / "val" / "n02")
    with pytest.raises(InputError, match=r"train has the class n02 and .*val does not"):
        folder_digest(root, cache)


def test_ilsvrc_2012_has_no_digest_of_its_own_and_is_listed_once(
    root: Path, cache: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in [*root.glob("*/n0?")]:
        folder.rename(folder.with_name(f"n0144076{folder.name[-1]}"))
    monkeypatch.setattr(folder_cache, "ILSVRC_2012", (3, 30, 12))
    assert [folder_digest(age(root), cache) for _ in range(2)] == [None, None]
    assert len(opened) == 1


@pytest.mark.parametrize("numbers", [(4, 30, 12), (3, 31, 12), (3, 30, 13)])
def test_other_numbers_of_classes_or_images_are_not_ilsvrc_2012(
    root: Path, cache: Path, numbers: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in [*root.glob("*/n0?")]:
        folder.rename(folder.with_name(f"n0144076{folder.name[-1]}"))
    monkeypatch.setattr(folder_cache, "ILSVRC_2012", numbers)
    assert folder_digest(root, cache) == open_folders("imagenet", root).digest


def test_other_names_of_classes_are_not_ilsvrc_2012(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_cache, "ILSVRC_2012", (3, 30, 12))
    assert folder_digest(root, cache) == open_folders("imagenet", root).digest


def test_ilsvrc_2012_has_1000_classes_1281167_training_and_50000_validation_images() -> None:
    assert folder_cache.ILSVRC_2012 == (1000, 1281167, 50000)
