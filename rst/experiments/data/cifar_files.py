"""CIFAR-10 and CIFAR-100 in files: found in either of two formats, decoded, and refused if they are not the data set.

The formats are the parquet files of the Hugging Face hub and the batches of torchvision, which can be downloaded.
"""

import io
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rst.experiments.data.splits import Dataset, Split, canonical


@dataclass(frozen=True)
class KnownDataset:
    """What is known of a published data set, so that files with anything else are refused.

    ``label_column`` is the column of the parquet files that holds the labels, ``digest`` is `Dataset.digest` in
    canonical order, and ``shape`` is [C, H, W].
    """

    name: str
    num_classes: int
    label_column: str
    digest: str
    train_images: int = 50_000
    test_images: int = 10_000
    shape: tuple[int, int, int] = (3, 32, 32)


KNOWN = {
    known.name: known
    for known in (
        KnownDataset("cifar10", 10, "label", "ffdd06cdb76e4e754e006cf33f4e84d88893a9c00167fff39f4c823974690268"),
        KnownDataset("cifar100", 100, "fine_label", "c18b3a584ec076989f6ab5c6113d673f9ca850a2ca8003ccaf04020213ac9c49"),
    )
}


def find(known: KnownDataset, *, root: Path | None, source: str, scratch: Path) -> Dataset:
    """Read the data set from the files below ``root``; where there are none, download it into ``scratch``.

    Args:
        known: the data set.
        root: the folder to search, at the places that `patterns` lists; None searches nothing.
        source: ``parquet`` or ``torchvision`` allows one format alone; ``auto`` allows both and prefers parquet.
            Only ``auto`` and ``torchvision`` download.
        scratch: a temporary folder for the download.

    Raises:
        FileNotFoundError: there are no files, and nothing could be downloaded.
        ValueError: files were found, but are damaged, incomplete or of another data set.
    """
    tried = []
    if root is not None:
        found: list[tuple[bool, Callable[[Path, KnownDataset], Dataset], Path]] = []
        if source in ("auto", "parquet"):
            found += [(has_all_parquet(folder), read_parquet, folder) for folder in parquet_folders(root, known)]
        if source in ("auto", "torchvision"):
            found += [
                (has_all_batches(folder, known), read_torchvision, folder)
                for folder in torchvision_folders(root, known)
            ]
        if found:
            # The first folder that is complete; where none is, the first, whose reader says what it lacks.
            _, read, folder = max(found, key=lambda place: place[0])
            return read(folder, known)
        tried.append(f"not in {', '.join(str(root / pattern) for pattern in patterns(known.name))}")
        if other := [shard for folder in folders(root, known.name) for shard in shards(folder, "train")]:
            tried.append(f"{other[0]} does not have the columns img and {known.label_column}")
    if source in ("auto", "torchvision"):
        try:
            return download(known, scratch)
        except (OSError, RuntimeError) as error:
            tried.append(f"the download failed: {error}")
    raise FileNotFoundError(
        f"No {known.name} images ({'; '.join(tried) or 'no dataset.root'}): write dataset.root=<folder with its "
        f"parquet or torchvision files>, or run `python scripts/prepare_data.py` with a network, or try "
        f"dataset.source=digits."
    )


def patterns(name: str) -> tuple[str, ...]:
    """The places below ``root`` where files are looked for, in this order; the last is the hub's own cache."""
    return (".", "*", f"{name}/*", f"*/{name}/*", f"datasets--*--{name}/snapshots/*/*")


def folders(root: Path, name: str) -> Iterator[Path]:
    """The folders that match `patterns`, in their order, but for hidden ones."""
    yield root
    for pattern in patterns(name)[1:]:
        yield from sorted(path for path in root.glob(pattern) if path.is_dir() and not is_hidden(path, root))


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a name in the path below ``root`` begins with a dot, as in ``.cache`` and ``._train.parquet``."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def checked(train: Split, test: Split, *, known: KnownDataset, origin: Path) -> Dataset:
    """Both splits in canonical order.

    Raises:
        ValueError: the images or labels, which were read from ``origin``, are not those of ``known``.
    """
    sizes, expected = (len(train), len(test)), (known.train_images, known.test_images)
    if sizes != expected:
        raise ValueError(
            f"{origin} has {sizes[0]:,} training and {sizes[1]:,} test images, but {known.name} has {expected[0]:,} "
            f"and {expected[1]:,}: copy or download the folder again."
        )
    dataset = Dataset(canonical(train), canonical(test))
    if dataset.digest != known.digest:
        raise ValueError(
            f"The images in {origin} are not those of {known.name} (digest {dataset.digest[:12]}, not "
            f"{known.digest[:12]}): copy or download the folder again."
        )
    return dataset


# The parquet files of the Hugging Face hub ----------------------------------------------------------------------------


def shards(folder: Path, split: str) -> list[Path]:
    """The parquet files of the split ``train`` or ``test`` that are not hidden, sorted by name."""
    return sorted(file for file in folder.glob(f"*{split}*.parquet") if not is_hidden(file, folder))


def parquet_folders(root: Path, known: KnownDataset) -> list[Path]:
    """Those of `folders` that have a parquet file with the columns of this data set, or one that cannot be read."""

    def of_this(shard: Path) -> bool:
        columns = columns_of(shard)
        return columns is None or {"img", known.label_column} <= columns

    both = ("train", "test")
    return [
        folder
        for folder in folders(root, known.name)
        if any(of_this(shard) for split in both for shard in shards(folder, split))
    ]


def columns_of(shard: Path) -> set[str] | None:
    """The columns of a parquet file; None where they cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return set(pq.read_schema(shard).names)
    except (pa.ArrowException, OSError):
        return None


def has_all_parquet(folder: Path) -> bool:
    """Whether no parquet file is missing in the folder, and all can be opened."""
    try:
        for split in ("train", "test"):
            refuse_gaps(folder, split, shards(folder, split))
    except ValueError:
        return False
    return all(columns_of(shard) is not None for split in ("train", "test") for shard in shards(folder, split))


def read_parquet(folder: Path, known: KnownDataset) -> Dataset:
    """Decode the parquet files in ``folder``. Raises ValueError naming a file that is missing, damaged or wrong."""
    from tqdm import tqdm

    files = {split: shards(folder, split) for split in ("train", "test")}
    for split, found in files.items():
        refuse_gaps(folder, split, found)
    total = known.train_images + known.test_images
    with tqdm(total=total, desc=f"Decoding {known.name}", unit=" images", disable=None) as bar:
        train, test = ([read_shard(file, known, bar.update) for file in found] for found in files.values())
    train_split, test_split = (
        Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
        for parts in (train, test)
    )
    return checked(train_split, test_split, known=known, origin=folder)


def refuse_gaps(folder: Path, split: str, files: list[Path]) -> None:
    """Raise ValueError if a file is missing, by the numbers in names such as ``train-00000-of-00002.parquet``."""
    if not files:
        raise ValueError(f"{folder / split}*.parquet is missing: copy or download the folder again.")
    for file in files:
        if match := re.fullmatch(r"(.*-)(\d+)-of-(\d+)\.parquet", file.name):
            stem, number, count = match.groups()
            for index in range(int(count)):
                shard = folder / f"{stem}{index:0{len(number)}}-of-{count}.parquet"
                if not shard.is_file():
                    raise ValueError(f"{shard} is missing: copy or download the folder again.")


def read_shard(file: Path, known: KnownDataset, progress: Callable[[int], Any]) -> Split:
    """Decode one parquet file, and call ``progress(1)`` after each image. Raises ValueError naming the file.

    Pillow decodes, because the decoder of torchvision can crash Python on a damaged image.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from PIL import Image

    try:
        table = pq.read_table(file, columns=["img", known.label_column])
        encoded = pc.struct_field(table["img"], "bytes").to_pylist()
        labels = torch.tensor(table[known.label_column].to_pylist(), dtype=torch.int64)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged or not of {known.name}: copy or download it again.") from error
    if ((labels < 0) | (labels >= known.num_classes)).any():
        raise ValueError(
            f"{file} has labels outside 0..{known.num_classes - 1}, so it is not of {known.name}: "
            "copy or download it again."
        )

    channels, height, width = known.shape
    images = np.empty((len(encoded), height, width, channels), dtype=np.uint8)
    for row, content in enumerate(encoded):
        try:
            image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        except Exception as error:  # Damage shows as an error of many kinds.
            raise ValueError(f"{file} has a damaged image in row {row}: copy or download it again.") from error
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"{file} has a {image.shape[0]}x{image.shape[1]} image in row {row}, so it is not of {known.name}: "
                "copy or download it again."
            )
        images[row] = image
        progress(1)
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)


# The batches of torchvision -------------------------------------------------------------------------------------------


def torchvision_reader(known: KnownDataset) -> Any:
    """torchvision's class for this data set, which knows the names, MD5 sums and address of its files."""
    from torchvision import datasets

    return getattr(datasets, known.name.upper())


def torchvision_folders(root: Path, known: KnownDataset) -> list[Path]:
    """Those of `folders` that contain torchvision's folder of batches, and the parents of those that are it."""
    base = torchvision_reader(known).base_folder
    parents = (folder.parent if folder.name == base else folder for folder in folders(root, known.name))
    return [parent for parent in parents if (parent / base).is_dir()]


def has_all_batches(root: Path, known: KnownDataset) -> bool:
    """Whether no file is missing in torchvision's folder of batches in ``root``."""
    reader = torchvision_reader(known)
    names = [name for name, _ in (*reader.train_list, *reader.test_list)] + [reader.meta["filename"]]
    return all((root / reader.base_folder / name).is_file() for name in names)


def read_torchvision(root: Path, known: KnownDataset) -> Dataset:
    """Read torchvision's folder of batches in ``root``. Raises ValueError naming a file that is missing or damaged."""
    from torchvision.datasets.utils import check_integrity

    reader = torchvision_reader(known)
    folder = root / reader.base_folder
    for file, md5 in [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]:
        if not check_integrity(folder / file, md5):
            raise ValueError(f"{folder / file} is missing or damaged: copy or download the folder again.")
    train, test = (
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in (reader(root, train=True), reader(root, train=False))
    )
    return checked(train, test, known=known, origin=folder)


def download(known: KnownDataset, folder: Path) -> Dataset:
    """Download torchvision's files into ``folder`` and read them; gives up on a network that is silent for 10 s."""
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        torchvision_reader(known)(folder, download=True)
    finally:
        socket.setdefaulttimeout(default)
    return read_torchvision(folder, known)
