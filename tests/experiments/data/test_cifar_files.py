"""CIFAR in files: where it is found, in what order it is read, and what is refused."""

import os
import pickle
import shutil
from hashlib import md5
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from made_up_cifar import EXPECTED, MADE_UP, TEST, TRAIN, assert_same, load_made_up, write_parquet, write_shard

from rst.experiments.data import Split
from rst.experiments.data.cifar_files import KnownDataset, read_parquet
from rst.experiments.data.sources import load_known

# Where files are found ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder",
    [
        ".",
        "plain_text",
        "cifar10/plain_text",
        "hub/cifar10/plain_text",
        "datasets--x--cifar10/snapshots/0a1b/plain_text",
    ],
)
def test_parquet_files_are_found_in_every_documented_place_below_the_root(tmp_path: Path, folder: str) -> None:
    write_parquet(tmp_path / "root" / folder)
    assert_same(load_made_up(tmp_path, tmp_path / "root"), EXPECTED)


@pytest.mark.parametrize("layout", ["{}/plain_text", "{}"])
def test_two_data_sets_below_one_root_are_told_apart(tmp_path: Path, layout: str) -> None:
    write_parquet(tmp_path / "root" / layout.format("cifar10"))
    write_parquet(tmp_path / "root" / layout.format("cifar100"), label_column="fine_label")
    other = KnownDataset("cifar100", 100, "fine_label", EXPECTED.digest, train_images=50, test_images=20)
    assert_same(load_made_up(tmp_path, tmp_path / "root"), EXPECTED)
    assert_same(load_made_up(tmp_path, tmp_path / "root", known=other), EXPECTED)


@pytest.mark.parametrize("hidden", [".cache/cifar10", ".cifar10", "cifar10/.incomplete", "hub/.cifar10/cifar10"])
def test_hidden_folders_are_not_searched(tmp_path: Path, hidden: str) -> None:
    write_parquet(tmp_path / "root" / hidden)
    with pytest.raises(FileNotFoundError, match="No cifar10 images"):
        load_made_up(tmp_path, tmp_path / "root")


def test_a_root_that_is_itself_below_a_hidden_folder_is_searched(tmp_path: Path) -> None:
    write_parquet(tmp_path / ".cache" / "hub" / "plain_text")
    assert_same(load_made_up(tmp_path, tmp_path / ".cache" / "hub"), EXPECTED)


def test_hidden_files_are_not_taken_for_shards(tmp_path: Path) -> None:
    """As macOS writes them beside each file on the disks of other systems."""
    folder = write_parquet(tmp_path / "root")
    for file in list(folder.iterdir()):
        (folder / f"._{file.name}").write_bytes(b"not a parquet file")
    (folder / ".DS_Store").write_bytes(b"not a parquet file")
    assert_same(load_made_up(tmp_path, folder), EXPECTED)


HUB = "datasets--x--cifar10/snapshots"


@pytest.mark.parametrize("missing", ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"])
@pytest.mark.parametrize("whole", [f"{HUB}/b/plain_text", "hub/cifar10/plain_text"])
def test_a_partial_folder_does_not_hide_a_whole_one(tmp_path: Path, missing: str, whole: str) -> None:
    write_parquet(tmp_path / "root" / whole)
    for partial in (f"{HUB}/a/plain_text", "cifar10/plain_text"):
        folder = write_parquet(tmp_path / "root" / partial)
        (folder / f"{missing}.parquet").unlink()
    assert_same(load_made_up(tmp_path, tmp_path / "root"), EXPECTED)


def test_a_link_to_a_file_that_was_not_downloaded_makes_a_folder_partial(tmp_path: Path) -> None:
    write_parquet(tmp_path / "root" / HUB / "b" / "plain_text")
    file = write_parquet(tmp_path / "root" / HUB / "a" / "plain_text") / "train-00001-of-00002.parquet"
    file.unlink()
    file.symlink_to("../../../blobs/nothing")
    assert_same(load_made_up(tmp_path, tmp_path / "root"), EXPECTED)


def test_where_no_folder_is_whole_the_first_one_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    for name in "ab":
        folder = write_parquet(tmp_path / "root" / HUB / name / "plain_text")
        (folder / f"train-0000{int(name == 'b')}-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"snapshots/a/plain_text/train-00000-of-00002\.parquet is missing"):
        load_made_up(tmp_path, tmp_path / "root")


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the made-up data set as files of torchvision, which is told their MD5 sums."""
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def dump(name: str, content: object) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, md5(data).hexdigest()]

    def batch(split: Split) -> dict[str, object]:
        return {"data": split.images.flatten(1).numpy(), "labels": split.labels.tolist()}

    reader = torchvision.datasets.CIFAR10
    monkeypatch.setattr(reader, "train_list", [dump("data_batch_1", batch(TRAIN[:20])), dump("b2", batch(TRAIN[20:]))])
    monkeypatch.setattr(reader, "test_list", [dump("test_batch", batch(TEST))])
    name, digest = dump("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(reader, "meta", {"filename": name, "key": "label_names", "md5": digest})
    return folder


@pytest.mark.parametrize("source", ["auto", "torchvision"])
@pytest.mark.parametrize("inside", [False, True])
def test_the_files_of_torchvision_give_the_same_data_set(
    tmp_path: Path, batches: Path, source: str, inside: bool
) -> None:
    assert_same(load_made_up(tmp_path, batches if inside else batches.parent, source), EXPECTED)


def test_whole_files_of_torchvision_are_taken_where_the_parquet_files_are_partial(
    tmp_path: Path, batches: Path
) -> None:
    (write_parquet(batches.parent / "cifar10" / "plain_text") / "test-00000-of-00001.parquet").unlink()
    assert_same(load_made_up(tmp_path, batches.parent, "auto"), EXPECTED)


def test_partial_files_of_torchvision_do_not_hide_whole_ones(tmp_path: Path, batches: Path) -> None:
    shutil.copytree(batches, tmp_path / "root" / "a" / batches.name)
    (tmp_path / "root" / "a" / batches.name / "b2").unlink()
    batches.rename(tmp_path / "whole")
    (tmp_path / "root" / "b").mkdir()
    (tmp_path / "whole").rename(tmp_path / "root" / "b" / batches.name)
    assert_same(load_made_up(tmp_path, tmp_path / "root", "torchvision"), EXPECTED)


def test_an_error_names_a_damaged_file_of_torchvision(tmp_path: Path, batches: Path) -> None:
    with open(batches / "b2", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="b2 is missing or damaged"):
        load_made_up(tmp_path, batches.parent, "auto")


@pytest.fixture
def network(batches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network from which the files of torchvision can be downloaded."""

    def download(reader: torchvision.datasets.CIFAR10) -> None:
        shutil.copytree(batches, Path(reader.root) / reader.base_folder, dirs_exist_ok=True)

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)


@pytest.mark.usefixtures("network")
def test_a_download_is_read_and_then_deleted(tmp_path: Path) -> None:
    assert_same(load_made_up(tmp_path, None, "auto"), EXPECTED)
    assert sorted(file.name for file in (tmp_path / "cache").iterdir()) == [".lock", "cifar10.pt"]


def test_finding_no_files_and_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(reader: torchvision.datasets.CIFAR10) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", no_network)
    with pytest.raises(FileNotFoundError) as caught:
        load_made_up(tmp_path, tmp_path, "auto")
    message = str(caught.value)
    for words in (f"{tmp_path}/*/cifar10/*", "not known", "dataset.root=", "scripts/prepare_data.py", "network"):
        assert words in message
    assert "\n" not in message
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.usefixtures("network")
def test_a_root_that_the_cache_lies_in_may_be_missing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert_same(load_known(MADE_UP, cache=data / "cache", root=data, source="auto"), EXPECTED)


# What is refused ------------------------------------------------------------------------------------------------------


def test_the_order_of_rows_and_shards_does_not_matter(tmp_path: Path) -> None:
    shuffled = TRAIN[torch.randperm(50)]
    write_shard(tmp_path / "train-00000-of-00001.parquet", shuffled)
    write_shard(tmp_path / "test-00000-of-00002.parquet", TEST[13:])
    write_shard(tmp_path / "test-00001-of-00002.parquet", TEST[:13])
    assert_same(read_parquet(tmp_path, MADE_UP), EXPECTED)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_an_error_names_a_truncated_shard(tmp_path: Path, keep: float) -> None:
    file = write_parquet(tmp_path / "root") / "train-00001-of-00002.parquet"
    os.truncate(file, int(keep * file.stat().st_size) if keep < 1 else int(keep))
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet is damaged"):
        load_made_up(tmp_path, tmp_path / "root")
    assert not (tmp_path / "cache" / "cifar10.pt").exists()


@pytest.mark.parametrize("position", np.linspace(0.02, 0.98, 13))
def test_damaged_bytes_in_a_shard_are_refused_or_change_nothing(tmp_path: Path, position: float) -> None:
    file = write_parquet(tmp_path) / "test-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    start = int(position * len(content))
    content[start : start + 16] = bytes(255 - byte for byte in content[start : start + 16])
    file.write_bytes(content)
    refusals = []
    try:
        assert_same(read_parquet(tmp_path, MADE_UP), EXPECTED)
    except ValueError as error:
        refusals.append(str(error))
    assert all(str(tmp_path) in refusal for refusal in refusals)
    assert refusals or position > 0.7  # Behind the pixels is metadata, some of which is never read.


@pytest.mark.parametrize("missing", ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"])
def test_an_error_names_a_missing_shard(tmp_path: Path, missing: str) -> None:
    (write_parquet(tmp_path) / f"{missing}.parquet").unlink()
    with pytest.raises(ValueError, match=f"{missing.split('-of')[0] if 'train' in missing else 'test'}.*is missing"):
        read_parquet(tmp_path, MADE_UP)


def test_an_error_names_a_file_of_another_data_set(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "root", label_column="fine_label")
    sentence = r"train-00000-of-00002\.parquet does not have the columns img and label"
    with pytest.raises(FileNotFoundError, match=sentence):
        load_made_up(tmp_path, folder)


def test_one_changed_pixel_is_refused(tmp_path: Path) -> None:
    images = TEST.images.clone()
    images[3, 1, 10, 20] ^= 1
    write_shard(write_parquet(tmp_path) / "test-00000-of-00001.parquet", Split(images, TEST.labels))
    with pytest.raises(ValueError, match=f"The images in {tmp_path} are not those of cifar10"):
        read_parquet(tmp_path, MADE_UP)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (TEST[:19], "50 training and 19 test images"),
        (Split(TEST.images[..., :16], TEST.labels), r"test-00000-of-00001\.parquet has a 32x16 image in row 0"),
        (Split(TEST.images, TEST.labels + 1), r"test-00000-of-00001\.parquet has labels outside 0\.\.9"),
        (Split(TEST.images, TEST.labels - 9), r"test-00000-of-00001\.parquet has labels outside 0\.\.9"),
    ],
)
def test_wrong_counts_sizes_and_labels_are_refused(tmp_path: Path, split: Split, message: str) -> None:
    write_shard(write_parquet(tmp_path) / "test-00000-of-00001.parquet", split)
    with pytest.raises(ValueError, match=message):
        read_parquet(tmp_path, MADE_UP)


def test_an_error_names_the_row_of_an_image_that_cannot_be_decoded(tmp_path: Path) -> None:
    images = [{"bytes": b"no image", "path": None}] * 20
    table = pa.table({"img": images, "label": TEST.labels.tolist()})
    pq.write_table(table, write_parquet(tmp_path) / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet has a damaged image in row 0"):
        read_parquet(tmp_path, MADE_UP)
