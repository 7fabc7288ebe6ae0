"""Where images in memory come from: CIFAR's files, or the embedded digits."""

from pathlib import Path

import torch
from torch.nn.functional import interpolate

from rst.data.cifar import SPECS, load_spec
from rst.data.splits import Dataset, Split, canonical

SOURCES = ("auto", "parquet", "torchvision", "digits")


def load(
    name: str,
    *,
    cache: str | Path,
    image_size: int,
    channels: int,
    root: str | Path | None = None,
    source: str = "auto",
) -> Dataset:
    """The data set ``name``: ``cifar10``, ``cifar100`` or ``digits``.

    ``root`` is the user's folder: it is searched, never written to. ``cache`` is ours: the decoded images are kept
    there, so that the next call reads one file and searches nothing. ``source`` is one of

    - ``auto``: parquet files, else torchvision's files, else a download by torchvision; for ``digits``, the digits;
    - ``parquet``: only the Hugging Face hub's parquet files;
    - ``torchvision``: only torchvision's files, downloaded if ``root`` has none;
    - ``digits``: scikit-learn's handwritten digits in ``image_size`` and ``channels`` whatever the name, for smoke
      runs without data.

    Files are looked for in ``root``, ``root/*``, ``root/<name>/*``, ``root/*/<name>/*`` and, as in the hub's own
    cache, ``root/datasets--*--<name>/snapshots/*/*``: in this order, the first that has them wins.
    Raises ``FileNotFoundError`` if there is no data and ``ValueError`` if what there is isn't the data set.
    """
    if source not in SOURCES:
        raise ValueError(f"dataset.source={source} is unknown: write one of {', '.join(SOURCES)}.")
    if source == "digits" or (name == "digits" and source == "auto"):
        return digits(image_size, channels)
    if name == "digits":
        raise ValueError(f"dataset.source={source} does not hold digits: write dataset.source=auto.")
    if name not in SPECS:
        raise ValueError(f"dataset.name={name} is unknown: write one of {', '.join([*SPECS, 'digits'])}.")
    spec = SPECS[name]
    if (channels, image_size, image_size) != spec.shape:
        raise ValueError(
            f"dataset.channels={channels} and dataset.image_size={image_size} do not fit {name}: its images have "
            f"{spec.shape[0]} channels of {spec.shape[1]}x{spec.shape[2]} pixels."
        )
    return load_spec(spec, cache=Path(cache), root=None if root is None else Path(root), source=source)


def digits(image_size: int = 8, channels: int = 1) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 1,000 for training, resized from 8x8 and repeated over the channels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    split = canonical(Split(images, torch.from_numpy(bunch.target).long()))
    size = (image_size, image_size)
    if split.images.shape[2:] != size:
        resized = interpolate(split.images.float(), size, mode="bilinear", antialias=True).round().to(torch.uint8)
        split = Split(resized, split.labels)
    split = Split(split.images.repeat(1, channels, 1, 1), split.labels)
    return Dataset(split[:1000], split[1000:])
