"""A made-up CIFAR-10 of 70 random images, in the file format of the Hugging Face hub."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from rst.experiments.data import Dataset, Split
from rst.experiments.data.cifar_files import KnownDataset
from rst.experiments.data.sources import load_known
from rst.experiments.data.splits import canonical


def random_split(count: int, seed: int) -> Split:
    """Random 32x32 images of ten classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (count,), generator=generator))


TRAIN, TEST = random_split(50, 0), random_split(20, 1)
EXPECTED = Dataset(canonical(TRAIN), canonical(TEST))
"""What is read from files that hold TRAIN and TEST."""

MADE_UP = KnownDataset("cifar10", 10, "label", EXPECTED.digest, train_images=50, test_images=20)


def write_shard(file: Path, split: Split, label_column: str = "label") -> None:
    """Write a split to one parquet file."""
    images = []
    for image in split.images:
        png = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(png, "PNG")
        images.append({"bytes": png.getvalue(), "path": None})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"img": images, label_column: split.labels.tolist()}), file)


def write_parquet(folder: Path, label_column: str = "label") -> Path:
    """Write TRAIN, in two shards, and TEST into a folder, which is returned."""
    write_shard(folder / "train-00000-of-00002.parquet", TRAIN[:30], label_column)
    write_shard(folder / "train-00001-of-00002.parquet", TRAIN[30:], label_column)
    write_shard(folder / "test-00000-of-00001.parquet", TEST, label_column)
    return folder


def load_made_up(tmp_path: Path, root: Path | None, source: str = "parquet", known: KnownDataset = MADE_UP) -> Dataset:
    """Load the made-up data set, with its cache in ``tmp_path / "cache"``."""
    return load_known(known, cache=tmp_path / "cache", root=root, source=source)


def assert_same(found: Dataset, expected: Dataset) -> None:
    """Check that two data sets have the same images and labels in the same order."""
    assert torch.equal(found.train.images, expected.train.images)
    assert torch.equal(found.train.labels, expected.train.labels)
    assert torch.equal(found.test.images, expected.test.images)
    assert torch.equal(found.test.labels, expected.test.labels)
