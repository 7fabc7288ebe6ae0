"""Data sets that fit into memory: CIFAR from files or from the cache, and handwritten digits that need no download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from rst.experiments.data.cache import read_cache, scratch_folder, write_cache
from rst.experiments.data.cifar_files import KNOWN, KnownDataset, find
from rst.experiments.data.splits import Dataset, Split, canonical


def load(
    name: str,
    *,
    cache: str | Path,
    image_size: int,
    channels: int,
    root: str | Path | None = None,
    source: str = "auto",
) -> Dataset:
    """Load the data set ``cifar10``, ``cifar100`` or ``digits`` into memory.

    Args:
        name: which data set.
        cache: the folder in which decoded images are kept, so that the next call reads one file and searches nothing.
        image_size: side of the images in pixels: that of the data set or, for digits, any.
        channels: channels of the images: those of the data set or, for digits, any.
        root: the user's folder of files. It is searched, never written to. Files are looked for in ``root``,
            ``root/*``, ``root/<name>/*``, ``root/*/<name>/*`` and, as in the cache of the Hugging Face hub,
            ``root/datasets--*--<name>/snapshots/*/*``; the first of them that has all files is read. Hidden
            folders and files, whose names begin with a dot, are left out.
        source: which files may be read.

            - ``auto``: parquet files, else torchvision's files, else a download by torchvision; for ``digits``, digits.
            - ``parquet``: only the parquet files of the Hugging Face hub.
            - ``torchvision``: only torchvision's files, which are downloaded if ``root`` has none.
            - ``digits``: scikit-learn's handwritten digits, whatever the name says, for trial runs without files.

    Raises:
        FileNotFoundError: there are no images.
        ValueError: an argument does not fit the data set, the files are not those of the data set, or the
            cache cannot be written.
    """
    if source == "digits" or (name == "digits" and source == "auto"):
        return digits(image_size, channels)
    if name == "digits":
        raise ValueError(f"dataset.source={source} does not hold digits: write dataset.source=auto.")
    known = KNOWN[name]
    if (channels, image_size, image_size) != known.shape:
        raise ValueError(
            f"dataset.channels={channels} and dataset.image_size={image_size} do not fit the images of {name}: "
            f"write dataset.channels={known.shape[0]} and dataset.image_size={known.shape[1]}."
        )
    return load_known(known, cache=Path(cache), root=None if root is None else Path(root), source=source)


def load_known(known: KnownDataset, *, cache: Path, root: Path | None, source: str) -> Dataset:
    """Load a known data set from the cache, else from its files, which then fill the cache; arguments as of `load`."""
    if root is not None:
        check_root(known.name, root, cache)
    file = cache / f"{known.name}.pt"
    dataset = read_cache(file, known.digest)
    if dataset is None:
        with scratch_folder(cache) as (scratch, waited):
            dataset = read_cache(file, known.digest) if waited else None
            if dataset is None:
                dataset = find(known, root=root, source=source, scratch=scratch)
                write_cache(file, dataset, scratch)
    return dataset


def check_root(name: str, root: Path, cache: Path) -> None:
    """Raise `FileNotFoundError` where the folder that should hold the data set ``name`` is missing."""
    # It is only empty, not wrong, where making the cache inside would make it: this is the default.
    if not root.is_dir() and root not in cache.parents:
        raise FileNotFoundError(
            f"there is no folder {root} to look for {name} in: write dataset.root=<folder that holds it>."
        )


def digits(image_size: int = 8, channels: int = 1) -> Dataset:
    """The 1,797 handwritten digits of scikit-learn, 8x8 pixels, of which the first 1,000 are for training.

    Args:
        image_size: side in pixels to which the images are resized.
        channels: number of equal channels.
    """
    # The file is read directly: importing scikit-learn would import pandas, and takes longer than a short training.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise FileNotFoundError("the embedded digits are a file of scikit-learn: pip install scikit-learn.")
    rows = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels, labels = torch.from_numpy(rows).split([64, 1], dim=1)
    images = pixels.view(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)
    split = canonical(Split(images, labels.flatten().long()))
    size = (image_size, image_size)
    if split.images.shape[2:] != size:
        resized = interpolate(split.images.float(), size, mode="bilinear", antialias=True).round().to(torch.uint8)
        split = Split(resized, split.labels)
    split = Split(split.images.repeat(1, channels, 1, 1), split.labels)
    return Dataset(split[:1000], split[1000:])
