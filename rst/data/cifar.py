"""CIFAR-10 and CIFAR-100: found in files of either kind, checked against what they must be, decoded once."""

import io
import os
import re
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from rst.data.splits import Dataset, Split, canonical


@dataclass(frozen=True)
class Spec:
    """What a data set must be, so that anything else is refused: ``digest`` is `Dataset.digest` in canonical order."""

    name: str
    num_classes: int
    label_column: str
    digest: str
    train_images: int = 50_000
    test_images: int = 10_000
    shape: tuple[int, int, int] = (3, 32, 32)


SPECS = {
    "cifar10": Spec("cifar10", 10, "label", "ffdd06cdb76e4e754e006cf33f4e84d88893a9c00167fff39f4c823974690268"),
    "cifar100": Spec("cifar100", 100, "fine_label", "c18b3a584ec076989f6ab5c6113d673f9ca850a2ca8003ccaf04020213ac9c49"),
}


def load_spec(spec: Spec, *, cache: Path, root: Path | None, source: str) -> Dataset:
    """The data set that ``spec`` describes: from the cache, else from ``source`` and then into the cache."""
    # A root that the cache lies in (the default) is made with the cache: not wrong, only empty.
    if root is not None and not root.is_dir() and root not in cache.parents:
        raise FileNotFoundError(f"dataset.root={root} is not a folder: write the folder that holds {spec.name}.")
    file = cache / f"{spec.name}.pt"
    dataset = read_cache(file, spec)
    if dataset is None:
        with scratch_folder(cache) as (scratch, waited):
            dataset = read_cache(file, spec) if waited else None
            if dataset is None:
                dataset = find(spec, root=root, source=source, scratch=scratch)
                write_cache(file, dataset, scratch)
    return dataset


def find(spec: Spec, *, root: Path | None, source: str, scratch: Path) -> Dataset:
    """Search ``root`` for what ``source`` allows, then download into ``scratch``: see `load`."""
    tried = []
    if root is not None:
        if source in ("auto", "parquet") and (folder := find_parquet(root, spec)):
            return read_parquet(folder, spec)
        if source in ("auto", "torchvision") and (folder := find_torchvision(root, spec)):
            return read_torchvision(folder, spec)
        tried.append(f"not in {', '.join(str(root / pattern) for pattern in patterns(spec.name))}")
        if strangers := [shard for folder in folders(root, spec.name) for shard in shards(folder, "train")]:
            tried.append(f"{strangers[0]} has not the columns img and {spec.label_column}")
    if source in ("auto", "torchvision"):
        try:
            return download(spec, scratch)
        except (OSError, RuntimeError) as error:
            tried.append(f"the download failed: {error}")
    raise FileNotFoundError(
        f"No {spec.name} images ({'; '.join(tried) or 'no dataset.root'}): write dataset.root=<folder with its parquet "
        f"or torchvision files>, or run `python scripts/prepare_data.py` with a network, or try dataset.source=digits."
    )


def patterns(name: str) -> tuple[str, ...]:
    """Where files are looked for below ``root``, in this order."""
    return (".", "*", f"{name}/*", f"*/{name}/*", f"datasets--*--{name}/snapshots/*/*")


def folders(root: Path, name: str) -> Iterator[Path]:
    """The folders that `patterns` match."""
    yield root
    for pattern in patterns(name)[1:]:
        yield from sorted(path for path in root.glob(pattern) if path.is_dir())


def checked(train: Split, test: Split, *, spec: Spec, origin: Path) -> Dataset:
    """Put both splits in canonical order, and raise unless they are what ``spec`` says."""
    sizes, expected = (len(train), len(test)), (spec.train_images, spec.test_images)
    if sizes != expected:
        raise ValueError(
            f"{origin} has {sizes[0]:,} training and {sizes[1]:,} test images, but {spec.name} has {expected[0]:,} "
            f"and {expected[1]:,}: copy or download the folder again."
        )
    dataset = Dataset(canonical(train), canonical(test))
    if dataset.digest != spec.digest:
        raise ValueError(
            f"The images in {origin} are not those of {spec.name} (digest {dataset.digest[:12]}, not "
            f"{spec.digest[:12]}): copy or download the folder again."
        )
    return dataset


# The Hugging Face hub's parquet files ---------------------------------------------------------------------------------


def shards(folder: Path, split: str) -> list[Path]:
    """The parquet files of one split, ``train`` or ``test``."""
    return sorted(folder.glob(f"*{split}*.parquet"))


def find_parquet(root: Path, spec: Spec) -> Path | None:
    """The first of `folders` with parquet files of this data set, told from others by their columns.

    An unreadable file counts as found, so that `read_parquet` refuses it by name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for folder in folders(root, spec.name):
        for shard in shards(folder, "train") + shards(folder, "test"):
            try:
                columns = pq.read_schema(shard).names
            except (pa.ArrowException, OSError):
                return folder
            if {"img", spec.label_column} <= set(columns):
                return folder
    return None


def read_parquet(folder: Path, spec: Spec) -> Dataset:
    """Decode the parquet files in ``folder``; a missing, damaged or wrong one is refused by name."""
    from tqdm import tqdm

    files = {split: shards(folder, split) for split in ("train", "test")}
    for split, found in files.items():
        refuse_gaps(folder, split, found)
    with tqdm(
        total=spec.train_images + spec.test_images, desc=f"Decoding {spec.name}", unit=" images", disable=None
    ) as bar:
        train, test = ([read_shard(file, spec, bar.update) for file in found] for found in files.values())
    train_split, test_split = (
        Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
        for parts in (train, test)
    )
    return checked(train_split, test_split, spec=spec, origin=folder)


def refuse_gaps(folder: Path, split: str, files: list[Path]) -> None:
    """Raise if a shard is missing, by the numbers in names such as ``train-00000-of-00002.parquet``."""
    if not files:
        raise ValueError(f"{folder / split}*.parquet is missing: copy or download the folder again.")
    for file in files:
        if match := re.fullmatch(r"(.*-)(\d+)-of-(\d+)\.parquet", file.name):
            stem, number, count = match.groups()
            for index in range(int(count)):
                shard = folder / f"{stem}{index:0{len(number)}}-of-{count}.parquet"
                if not shard.is_file():
                    raise ValueError(f"{shard} is missing: copy or download the folder again.")


def read_shard(file: Path, spec: Spec, progress: Callable[[int], Any]) -> Split:
    """Decode one parquet file; by Pillow, since torchvision's decoder can crash Python on a damaged image."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from PIL import Image

    try:
        table = pq.read_table(file, columns=["img", spec.label_column])
        encoded = pc.struct_field(table["img"], "bytes").to_pylist()
        labels = torch.tensor(table[spec.label_column].to_pylist(), dtype=torch.int64)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged or not of {spec.name}: copy or download it again.") from error
    if ((labels < 0) | (labels >= spec.num_classes)).any():
        raise ValueError(f"{file} has labels outside 0..{spec.num_classes - 1}: it is not of {spec.name}.")

    channels, height, width = spec.shape
    images = np.empty((len(encoded), height, width, channels), dtype=np.uint8)
    for row, content in enumerate(encoded):
        try:
            image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        except Exception as error:  # damage shows as an error of many kinds
            raise ValueError(f"{file} has a damaged image in row {row}: copy or download it again.") from error
        if image.shape != images.shape[1:]:
            raise ValueError(f"{file} has a {image.shape[0]}x{image.shape[1]} image in row {row}: not {spec.name}.")
        images[row] = image
        progress(1)
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)


# torchvision's own files ----------------------------------------------------------------------------------------------


def torchvision_reader(spec: Spec) -> Any:
    """torchvision's class for this data set, which knows its files, their MD5 and their address."""
    from torchvision import datasets

    return getattr(datasets, spec.name.upper())


def find_torchvision(root: Path, spec: Spec) -> Path | None:
    """The first of `folders` that holds torchvision's folder of batches, or is it."""
    base = torchvision_reader(spec).base_folder
    for folder in folders(root, spec.name):
        if folder.name == base:
            return folder.parent
        if (folder / base).is_dir():
            return folder
    return None


def read_torchvision(root: Path, spec: Spec) -> Dataset:
    """Read the folder of batches under ``root``; a missing or damaged file is refused by name."""
    from torchvision.datasets.utils import check_integrity

    reader = torchvision_reader(spec)
    folder = root / reader.base_folder
    for file, md5 in [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]:
        if not check_integrity(folder / file, md5):
            raise ValueError(f"{folder / file} is missing or damaged: copy or download the folder again.")
    train, test = (
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in (reader(root, train=True), reader(root, train=False))
    )
    return checked(train, test, spec=spec, origin=folder)


def download(spec: Spec, folder: Path) -> Dataset:
    """Let torchvision download its files into ``folder``, and read them; give up on a silent network after 10 s."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        torchvision_reader(spec)(folder, download=True)
    finally:
        socket.setdefaulttimeout(patience)
    return read_torchvision(folder, spec)


# The cache ------------------------------------------------------------------------------------------------------------


@contextmanager
def scratch_folder(cache: Path) -> Iterator[tuple[Path, bool]]:
    """A temporary folder inside ``cache``: what is finished there can be moved into the cache in one step.

    One process at a time has it; the others say that they wait, and are told that they have.
    """
    lock, waited = FileLock(cache / ".lock"), False
    try:
        cache.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            waited = True
            print(f"Another process fills the cache {cache}: waits for it.", file=sys.stderr)
            lock.acquire()
        for left in cache.glob(".tmp-*"):  # by a process that was killed
            shutil.rmtree(left)
        scratch = tempfile.TemporaryDirectory(dir=cache, prefix=".tmp-")
    except OSError as error:
        lock.release()
        raise unwritable(cache, error) from error
    try:
        with scratch as path:
            yield Path(path), waited
    finally:
        lock.release()


def read_cache(file: Path, spec: Spec) -> Dataset | None:
    """The decoded data set, or None if there is none or it is damaged (with a warning)."""
    if not file.exists():
        return None
    try:
        content = torch.load(file, weights_only=True)
        dataset = Dataset(Split(*content["train"]), Split(*content["test"]))
        if dataset.digest == spec.digest:
            return dataset
    except Exception:  # damage shows as an error of pickle, zipfile, torch or the file system
        pass
    warnings.warn(f"{file} is damaged: building it again.", stacklevel=2)
    return None


def write_cache(file: Path, dataset: Dataset, scratch: Path) -> None:
    """Write the decoded data set so that ``file`` is either absent, old or complete, also after a power cut."""
    train, test = dataset.train, dataset.test
    content = io.BytesIO()  # of a file, torch would turn the errors into its own
    torch.save({"train": (train.images, train.labels), "test": (test.images, test.labels)}, content)
    try:
        with open(scratch / file.name, "wb") as handle:
            handle.write(content.getbuffer())
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(scratch / file.name, file)
    except OSError as error:
        raise unwritable(file.parent, error) from error


def unwritable(cache: Path, error: OSError) -> ValueError:
    """The sentence for a cache on a full or read-only disk."""
    return ValueError(f"The cache {cache} cannot be written ({error.strerror or error}): write paths.cache=<folder>.")
