"""Where images come from: what is found, in what order, and what is refused."""

import io
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
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from rst.data import Dataset, Split, hold_out, load, with_label_noise
from rst.data.cifar import Spec, load_spec, read_parquet
from rst.data.splits import canonical


def random_split(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (count,), generator=generator))


TRAIN, TEST = random_split(50, 0), random_split(20, 1)
EXPECTED = Dataset(canonical(TRAIN), canonical(TEST))
SPEC = Spec("cifar10", 10, "label", EXPECTED.digest, train_images=50, test_images=20)


def write_shard(file: Path, split: Split, label_column: str = "label") -> None:
    images = []
    for image in split.images:
        png = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(png, "PNG")
        images.append({"bytes": png.getvalue(), "path": None})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"img": images, label_column: split.labels.tolist()}), file)


def write_parquet(folder: Path, label_column: str = "label") -> Path:
    """The made-up data set in the hub's layout, its training images in two shards."""
    write_shard(folder / "train-00000-of-00002.parquet", TRAIN[:30], label_column)
    write_shard(folder / "train-00001-of-00002.parquet", TRAIN[30:], label_column)
    write_shard(folder / "test-00000-of-00001.parquet", TEST, label_column)
    return folder


def load_made_up(tmp_path: Path, root: Path | None, source: str = "parquet", spec: Spec = SPEC) -> Dataset:
    return load_spec(spec, cache=tmp_path / "cache", root=root, source=source)


def assert_same(found: Dataset, expected: Dataset) -> None:
    assert torch.equal(found.train.images, expected.train.images)
    assert torch.equal(found.train.labels, expected.train.labels)
    assert torch.equal(found.test.images, expected.test.images)
    assert torch.equal(found.test.labels, expected.test.labels)


# Where files are found


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
def test_parquet_files_are_found_below_any_parent(tmp_path: Path, folder: str) -> None:
    write_parquet(tmp_path / "root" / folder)
    assert_same(load_made_up(tmp_path, tmp_path / "root"), EXPECTED)


@pytest.mark.parametrize("layout", ["{}/plain_text", "{}"])
def test_two_data_sets_under_one_root_are_told_apart(tmp_path: Path, layout: str) -> None:
    write_parquet(tmp_path / "root" / layout.format("cifar10"))
    write_parquet(tmp_path / "root" / layout.format("cifar100"), label_column="fine_label")
    spec = Spec("cifar100", 100, "fine_label", EXPECTED.digest, train_images=50, test_images=20)
    assert_same(load_made_up(tmp_path, tmp_path / "root"), EXPECTED)
    assert_same(load_made_up(tmp_path, tmp_path / "root", spec=spec), EXPECTED)


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The made-up data set as torchvision's files, with their MD5 made known to torchvision."""
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
def test_torchvision_files_give_the_same_data_set(tmp_path: Path, batches: Path, source: str, inside: bool) -> None:
    assert_same(load_made_up(tmp_path, batches if inside else batches.parent, source), EXPECTED)


def test_a_damaged_torchvision_file_is_named(tmp_path: Path, batches: Path) -> None:
    with open(batches / "b2", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="b2 is missing or damaged"):
        load_made_up(tmp_path, batches.parent, "auto")


@pytest.fixture
def network(batches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that has torchvision's files."""

    def download(reader: torchvision.datasets.CIFAR10) -> None:
        shutil.copytree(batches, Path(reader.root) / reader.base_folder, dirs_exist_ok=True)

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)


@pytest.mark.usefixtures("network")
def test_a_download_is_read_and_cleared_away(tmp_path: Path) -> None:
    assert_same(load_made_up(tmp_path, None, "auto"), EXPECTED)
    assert sorted(file.name for file in (tmp_path / "cache").iterdir()) == [".lock", "cifar10.pt"]


def test_nothing_found_and_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_root_that_is_no_folder_is_refused_even_with_a_warm_cache(tmp_path: Path) -> None:
    load_made_up(tmp_path, write_parquet(tmp_path / "root"))
    with pytest.raises(FileNotFoundError, match=r"dataset\.root=.*nowhere is not a folder"):
        load_made_up(tmp_path, tmp_path / "nowhere")


@pytest.mark.usefixtures("network")
def test_a_root_that_the_cache_lies_in_need_not_be_there_yet(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert_same(load_spec(SPEC, cache=data / "cache", root=data, source="auto"), EXPECTED)


# What is refused


def test_order_of_rows_and_shards_does_not_matter(tmp_path: Path) -> None:
    shuffled = TRAIN[torch.randperm(50)]
    write_shard(tmp_path / "train-00000-of-00001.parquet", shuffled)
    write_shard(tmp_path / "test-00000-of-00002.parquet", TEST[13:])
    write_shard(tmp_path / "test-00001-of-00002.parquet", TEST[:13])
    assert_same(read_parquet(tmp_path, SPEC), EXPECTED)


def test_canonical_order_breaks_ties_between_equal_images_by_label() -> None:
    images = TRAIN.images[:1].repeat(3, 1, 1, 1)
    assert canonical(Split(images, torch.tensor([7, 2, 5]))).labels.tolist() == [2, 5, 7]


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_shard_is_named(tmp_path: Path, keep: float) -> None:
    file = write_parquet(tmp_path / "root") / "train-00001-of-00002.parquet"
    os.truncate(file, int(keep * file.stat().st_size) if keep < 1 else keep)
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet is damaged"):
        load_made_up(tmp_path, tmp_path / "root")
    assert not (tmp_path / "cache" / "cifar10.pt").exists()


@pytest.mark.parametrize("position", np.linspace(0.02, 0.98, 13))
def test_damaged_bytes_in_a_shard_are_refused_or_harmless(tmp_path: Path, position: float) -> None:
    file = write_parquet(tmp_path) / "test-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    start = int(position * len(content))
    content[start : start + 16] = bytes(255 - byte for byte in content[start : start + 16])
    file.write_bytes(content)
    refusals = []
    try:
        assert_same(read_parquet(tmp_path, SPEC), EXPECTED)
    except ValueError as error:
        refusals.append(str(error))
    assert all(str(tmp_path) in refusal for refusal in refusals)
    assert refusals or position > 0.7  # past the pixels is bookkeeping of which some is never read


@pytest.mark.parametrize("missing", ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"])
def test_a_missing_shard_is_named(tmp_path: Path, missing: str) -> None:
    (write_parquet(tmp_path) / f"{missing}.parquet").unlink()
    with pytest.raises(ValueError, match=f"{missing.split('-of')[0] if 'train' in missing else 'test'}.*is missing"):
        read_parquet(tmp_path, SPEC)


def test_another_data_sets_file_is_named(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "root", label_column="fine_label")
    with pytest.raises(FileNotFoundError, match=r"train-00000-of-00002\.parquet has not the columns img and label"):
        load_made_up(tmp_path, folder)


def test_one_changed_pixel_is_refused(tmp_path: Path) -> None:
    images = TEST.images.clone()
    images[3, 1, 10, 20] ^= 1
    write_shard(write_parquet(tmp_path) / "test-00000-of-00001.parquet", Split(images, TEST.labels))
    with pytest.raises(ValueError, match=f"The images in {tmp_path} are not those of cifar10"):
        read_parquet(tmp_path, SPEC)


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
        read_parquet(tmp_path, SPEC)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    images = [{"bytes": b"no image", "path": None}] * 20
    table = pa.table({"img": images, "label": TEST.labels.tolist()})
    pq.write_table(table, write_parquet(tmp_path) / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet has a damaged image in row 0"):
        read_parquet(tmp_path, SPEC)


@pytest.mark.parametrize(("key", "value"), [("name", "mnist"), ("source", "web"), ("image_size", 28), ("channels", 1)])
def test_a_wrong_key_is_named_with_its_value(tmp_path: Path, key: str, value: object) -> None:
    arguments = {"name": "cifar10", "cache": tmp_path, "image_size": 32, "channels": 3, key: value}
    with pytest.raises(ValueError, match=rf"dataset\.{key}={value}"):
        load(**arguments)


# The cache


def test_a_second_load_needs_the_cache_alone(tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "root")
    load_made_up(tmp_path, root)
    for file in root.iterdir():
        file.unlink()
    assert_same(load_made_up(tmp_path, root), EXPECTED)
    assert_same(load_made_up(tmp_path, None), EXPECTED)


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped bit", "other content"])
def test_a_damaged_cache_is_built_again_with_a_warning(tmp_path: Path, damage: str) -> None:
    root = write_parquet(tmp_path / "root")
    load_made_up(tmp_path, root)
    file = tmp_path / "cache" / "cifar10.pt"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "flipped bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        torch.save({"weights": torch.zeros(3)}, file)
    with pytest.warns(UserWarning, match=r"cifar10\.pt is damaged: building it again"):
        assert_same(load_made_up(tmp_path, root), EXPECTED)
    assert_same(load_made_up(tmp_path, None), EXPECTED)


def test_a_failed_write_leaves_the_cache_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No space"):
        load_made_up(tmp_path, write_parquet(tmp_path / "root"))
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(ValueError, match=r"The cache .*cache cannot be written .*paths\.cache="):
        load_made_up(tmp_path, write_parquet(tmp_path / "root"))


# Digits


def test_digits_are_1000_training_and_797_test_images_of_ten_classes(tmp_path: Path) -> None:
    data = load("digits", cache=tmp_path, image_size=8, channels=1)
    assert data.train.images.shape == (1000, 1, 8, 8)
    assert data.test.images.shape == (797, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert int(data.train.images.max()) == 255
    assert torch.bincount(data.train.labels).min() > 80
    pixels = torch.cat([data.train.images, data.test.images]).flatten(1)
    assert torch.equal(canonical(Split(pixels, torch.cat([data.train.labels, data.test.labels]))).images, pixels)


def test_digits_stand_in_for_another_data_set_in_its_size(tmp_path: Path) -> None:
    data = load("cifar10", cache=tmp_path, image_size=32, channels=3, source="digits")
    small = load("digits", cache=tmp_path, image_size=8, channels=1)
    assert data.train.images.shape == (1000, 3, 32, 32)
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])
    assert torch.equal(data.train.labels, small.train.labels)
    shrunk = torch.nn.functional.avg_pool2d(data.train.images[:, :1].float(), 4)
    assert (shrunk - small.train.images).abs().mean() < 20


# Splits


def test_the_digest_depends_on_every_pixel_and_label() -> None:
    images = EXPECTED.test.images.clone()
    images[-1, -1, -1, -1] ^= 1
    labels = EXPECTED.test.labels.clone()
    labels[-1] += 1
    changed = [Split(images, EXPECTED.test.labels), Split(EXPECTED.test.images, labels)]
    assert len({EXPECTED.digest, *(Dataset(EXPECTED.train, split).digest for split in changed)}) == 3


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), max_size=60),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    extra=st.integers(0, 3),
)
def test_label_noise_changes_exactly_its_fraction_and_never_to_the_same_class(
    labels: list[int], fraction: float, seed: int, extra: int
) -> None:
    before = torch.tensor(labels, dtype=torch.int64)
    after = with_label_noise(before, fraction, 5 + extra, seed)
    assert int((before != after).sum()) == round(fraction * len(labels))
    assert before.tolist() == labels
    assert all(0 <= label < 5 + extra for label in after.tolist())
    assert torch.equal(after, with_label_noise(before, fraction, 5 + extra, seed))


def test_label_noise_is_uniform_over_the_other_classes_and_depends_on_the_seed() -> None:
    before = torch.full((9000,), 3)
    after = with_label_noise(before, 1.0, 10, seed=0)
    counts = torch.bincount(after, minlength=10).float()
    assert counts[3] == 0
    assert ((counts - 1000).abs()[torch.arange(10) != 3] < 150).all()
    assert not torch.equal(after, with_label_noise(before, 1.0, 10, seed=1))


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_label_noise_that_is_no_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"dataset.label_noise={fraction}"):
        with_label_noise(torch.zeros(4, dtype=torch.int64), fraction, 10, 0)


@settings(deadline=None)
@given(n=st.integers(0, 49), seed=st.integers(0, 2**31))
def test_held_out_and_kept_images_are_disjoint_and_complete(n: int, seed: int) -> None:
    numbered = Split(torch.arange(50)[:, None, None, None], torch.arange(50))
    kept, held = hold_out(numbered, n, seed)
    assert len(held) == n
    assert sorted([*kept.labels.tolist(), *held.labels.tolist()]) == list(range(50))
    assert torch.equal(held.images.flatten(), held.labels)
    assert torch.equal(hold_out(numbered, n, seed)[1].labels, held.labels)


def test_holding_out_everything_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset\.validation=50"):
        hold_out(TRAIN, 50, seed=0)


def assert_normalised_by_its_own_statistics(name: str, dataset: Dataset, tolerance: float) -> None:
    config = OmegaConf.load(Path(__file__).parents[1] / "configs" / "dataset" / f"{name}.yaml")
    channels = dataset.train.images.transpose(0, 1).flatten(1)
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(1, keepdim=True)
    mean = shares @ values
    std = ((shares * (values - mean[:, None]).square()).sum(1)).sqrt()
    assert mean.tolist() == pytest.approx(list(config.mean), abs=tolerance)
    assert std.tolist() == pytest.approx(list(config.std), abs=tolerance)


def test_the_digits_are_normalised_by_their_own_statistics(tmp_path: Path) -> None:
    digits = load("digits", cache=tmp_path, image_size=8, channels=1)
    assert_normalised_by_its_own_statistics("digits", digits, 0.01)


# The real data


def test_the_real_cifar10_is_accepted_and_cached(tmp_path: Path, real_data: Path) -> None:
    arguments = {"cache": tmp_path, "root": str(real_data), "image_size": 32, "channels": 3}
    first = load("cifar10", **arguments)
    assert_normalised_by_its_own_statistics("cifar10", first, 1e-6)
    assert torch.bincount(first.train.labels).tolist() == [5000] * 10
    assert_same(load("cifar10", **arguments), first)
