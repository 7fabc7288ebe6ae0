"""Folders of image files: how they are found and ordered, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from image_tree import CLASSES, make_image_tree, truncate

from rst.experiments.data import ImageFolders, open_folders


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_tree(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def folders(root: Path) -> ImageFolders:
    return open_folders("imagenet", root)


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(root, tmp_path / "copy")


def test_every_file_is_found_and_labelled_by_its_class(folders: ImageFolders, root: Path) -> None:
    assert folders.classes == CLASSES
    assert (len(folders.train), len(folders.test)) == (30, 12)
    for files, split in ((folders.train, "train"), (folders.test, "val")):
        paths = [files.path(row) for row in range(len(files))]
        assert sorted(paths) == sorted(str(path) for path in (root / split).rglob("*.JPEG"))
        assert [CLASSES[label] for label in files.labels] == [Path(path).parent.name for path in paths]


@pytest.mark.parametrize("place", ["imagenet", "ILSVRC/Data/CLS-LOC"])
def test_the_folders_are_found_in_the_usual_places_below_the_root(root: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).symlink_to(root)
    assert open_folders("imagenet", tmp_path).root == tmp_path / place


def test_the_order_depends_on_the_file_names_alone_and_mixes_the_classes(folders: ImageFolders, copy: Path) -> None:
    again = open_folders("imagenet", copy)
    assert again.train.names.tolist() == folders.train.names.tolist()
    assert set(folders.train[:10].labels.tolist()) == {0, 1, 2}
    assert len(folders.train[:10]) == 10


def test_rows_select_files_with_their_labels(folders: ImageFolders) -> None:
    rows = torch.tensor([4, 0, 7])
    chosen = folders.train[rows]
    assert [chosen.path(row) for row in range(3)] == [folders.train.path(int(row)) for row in rows]
    assert chosen.labels.tolist() == folders.train.labels[rows].tolist()


def test_a_tensor_of_one_row_selects_a_list_of_one_file(folders: ImageFolders) -> None:
    chosen = folders.train[torch.tensor([4])]
    assert (len(chosen), chosen.path(0)) == (1, folders.train.path(4))


def test_the_digest_depends_on_the_names_and_sizes_of_the_files(folders: ImageFolders, copy: Path) -> None:
    assert open_folders("imagenet", copy).digest == folders.digest
    truncate(copy / "val" / "n01" / "n01_0.JPEG")
    shorter = open_folders("imagenet", copy).digest
    (copy / "val" / "n01" / "n01_0.JPEG").rename(copy / "val" / "n01" / "other.JPEG")
    assert len({folders.digest, shorter, open_folders("imagenet", copy).digest}) == 3


@pytest.mark.parametrize(
    ("harm", "error", "sentence"),
    [
        (lambda root: shutil.rmtree(root / "val"), FileNotFoundError, "{root} has no val;.*write dataset.root="),
        (lambda root: shutil.rmtree(root / "train"), FileNotFoundError, "{root} has no train;.*write dataset.root="),
        (lambda root: shutil.rmtree(root), FileNotFoundError, "{root} has no train and no val;"),
        (lambda root: shutil.rmtree(root / "val" / "n02"), ValueError, "{root}/train has the class n02 and {root}/val"),
        (lambda root: shutil.rmtree(root / "train" / "n02"), ValueError, "{root}/val has the class n02 and {root}/tra"),
        (
            lambda root: [file.unlink() for file in (root / "train" / "n03").iterdir()],
            FileNotFoundError,
            "{root}/train/n03 has no images: copy the folder of this class again",
        ),
        (
            lambda root: (
                [shutil.move(file, root / "val") for file in (root / "val").glob("*/*")]
                + [folder.rmdir() for folder in (root / "val").glob("n*") if folder.is_dir()]
            ),
            FileNotFoundError,
            "{root}/val has no class folders: move each image to {root}/val/<class>/",
        ),
        (
            lambda root: [file.unlink() for file in (root / "val").glob("*/*")],
            FileNotFoundError,
            "{root}/val/n01 has no images",
        ),
    ],
)
def test_incomplete_folders_are_refused_in_one_sentence(copy: Path, harm: Any, error: type, sentence: str) -> None:
    harm(copy)
    with pytest.raises(error, match=sentence.format(root=copy)) as raised:
        open_folders("imagenet", copy)
    assert "\n" not in str(raised.value)


def test_the_check_passes_where_every_file_can_be_decoded(folders: ImageFolders) -> None:
    folders.check()


def test_the_check_names_every_damaged_file_in_one_sentence(copy: Path) -> None:
    truncated, empty, text = (
        copy / name for name in ("train/n01/n01_3.JPEG", "train/n03/n03_0.JPEG", "val/n02/n02_1.JPEG")
    )
    truncate(truncated)
    empty.write_bytes(b"")
    text.write_text("not an image")
    with pytest.raises(ValueError, match=r"3 of the 42 images in .* cannot be decoded, copy them again") as raised:
        open_folders("imagenet", copy).check()
    message = str(raised.value)
    assert all(str(path) in message for path in (truncated, empty, text))
    assert message.count(".JPEG") == 3
    assert "\n" not in message


# Hidden files and folders ---------------------------------------------------------------------------------------------


def test_hidden_files_and_folders_are_not_taken_for_images_or_classes(tmp_path: Path) -> None:
    """As macOS and downloads leave them among the images."""
    root = make_image_tree(tmp_path)
    before = open_folders("imagenet", root)
    for split in ("train", "val"):
        image = next((root / split / "n01").iterdir())
        for hidden in (".cache", "n01/.thumbnails"):
            (root / split / hidden).mkdir()
            (root / split / hidden / image.name).write_bytes(image.read_bytes())
        (root / split / "n01" / f"._{image.name}").write_bytes(b"not an image")
        (root / split / ".DS_Store").write_bytes(b"not an image")
    after = open_folders("imagenet", root)
    assert after.classes == before.classes
    assert after.digest == before.digest


def test_a_split_with_hidden_folders_alone_has_no_class_folders(tmp_path: Path) -> None:
    root = make_image_tree(tmp_path)
    for folder in list((root / "val").iterdir()):
        folder.rename(folder.with_name(f".{folder.name}"))
    with pytest.raises(FileNotFoundError, match=rf"^{root / 'val'} has no class folders"):
        open_folders("imagenet", root)
