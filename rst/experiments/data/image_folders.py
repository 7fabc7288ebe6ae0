"""ImageNet, and data sets laid out like it: folders of image files, one folder for each class."""

import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rst.experiments.data.crops import decode
from rst.experiments.devices import available_cores
from rst.experiments.errors import InputError, bad_input
from rst.experiments.files import write_atomically

PLACES = (".", "imagenet", "ILSVRC/Data/CLS-LOC")
"""Where the folders ``train`` and ``val`` are looked for below the root, in this order."""

ILSVRC_2012 = (1_000, 1_281_167, 50_000)
"""How many classes, training images and validation images ILSVRC 2012 has."""

DIGESTS = "folder_digests.json"
"""The file in the cache in which `folder_digest` keeps its answers."""

SETTLED = 2 * 10**9
"""Nanoseconds after a change of a folder from which a further change is sure to show in its modification time."""


@dataclass(frozen=True, eq=False)
class Files:
    """Image files and their labels.

    ``names`` are relative to ``folder``, in one array of bytes [N]: a list of a million strings would be copied into
    every worker process. ``labels`` are int64 [N].
    """

    folder: Path
    names: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: slice | Tensor) -> "Files":
        return Files(self.folder, self.names[rows], self.labels[rows])

    def path(self, row: int) -> str:
        """The path of the file in one row."""
        return os.path.join(self.folder, os.fsdecode(self.names[row]))


@dataclass(frozen=True, eq=False)
class ImageFolders:
    """The files of ``root/train/<class>`` and ``root/val/<class>``.

    A label is the place of the class among the sorted ``classes``. Each split is sorted by the SHA-256 of the file
    names. This order is random with respect to the classes: the first n images are a fair sample of all.
    """

    root: Path
    classes: list[str]
    train: Files
    test: Files

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) of the names and sizes of all files, in their order."""
        state = sha256()
        for files in (self.train, self.test):
            for row, name in enumerate(files.names):
                state.update(b"%s/%s:%d\n" % (files.folder.name.encode(), name, os.path.getsize(files.path(row))))
        return state.hexdigest()

    def check(self) -> None:
        """Decode every file, on all cores, with a progress bar.

        Raises:
            ValueError: files cannot be decoded; the sentence names the first ten of them.
        """
        from tqdm import tqdm

        total, damaged = len(self.train) + len(self.test), []
        with (
            ThreadPoolExecutor(available_cores()) as threads,
            tqdm(total=total, desc="Checking ImageNet", unit=" images") as bar,
        ):
            for files in (self.train, self.test):
                chunks = [range(len(files))[start : start + 100] for start in range(0, len(files), 100)]
                for chunk, found in zip(chunks, threads.map(partial(damaged_files, files), chunks), strict=True):
                    damaged += found
                    bar.update(len(chunk))
        if damaged:
            names = ", ".join(damaged[:10]) + (", ..." if len(damaged) > 10 else "")
            raise ValueError(
                f"{len(damaged)} of the {total:,} images in {self.root} cannot be decoded, copy them again: {names}."
            )


def damaged_files(files: Files, rows: range) -> list[str]:
    """The paths of those files in ``rows`` that cannot be decoded."""
    damaged = []
    for row in rows:
        try:
            decode(files.path(row))
        except ValueError:
            damaged.append(files.path(row))
    return damaged


def open_imagenet(root: str | Path) -> ImageFolders:
    """List the images of ``root``, whose folders ``train`` and ``val`` may be at any of `PLACES`.

    Raises:
        FileNotFoundError: ``train``, ``val`` or the images of a class are missing.
        ValueError: ``train`` and ``val`` have different classes.
    """
    found = find_imagenet(root)
    if found is None:
        tried = "; ".join(f"{folder} has no {' and no '.join(lacking(folder))}" for folder in places(root))
        raise FileNotFoundError(
            f"No ImageNet images ({tried}): write dataset.root=<folder with train/<class>/*.JPEG and "
            f"val/<class>/*.JPEG>, or try dataset.source=digits."
        )
    (classes, train), (test_classes, test) = image_files(found / "train"), image_files(found / "val")
    if differing := sorted({*classes} ^ {*test_classes}):
        has, lacks = ("train", "val") if differing[0] in classes else ("val", "train")
        raise ValueError(
            f"{found / has} has the class {differing[0]} and {found / lacks} does not: "
            "give both the same class folders."
        )
    return ImageFolders(found, classes, train, test)


def find_imagenet(root: str | Path) -> Path | None:
    """The first of the `PLACES` below ``root`` that has both folders, ``train`` and ``val``."""
    return next((folder for folder in places(root) if not lacking(folder)), None)


def places(root: str | Path) -> list[Path]:
    """The folders that `PLACES` name below ``root``."""
    return [Path(root) / place for place in PLACES]


def lacking(folder: Path) -> list[str]:
    """Which of the folders ``train`` and ``val`` are missing in ``folder``."""
    return [split for split in ("train", "val") if not (folder / split).is_dir()]


def image_files(folder: Path) -> tuple[list[str], Files]:
    """The sorted classes of one split and its images, in the order that `ImageFolders` describes, but for hidden ones.

    Raises:
        FileNotFoundError: there are no class folders, or one has no images.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    classes = class_folders(folder)
    if not classes:
        raise FileNotFoundError(f"{folder} has no class folders: move each image to {folder}/<class>/.")
    labels_of = {name: label for label, name in enumerate(classes)}
    found = make_dataset(str(folder), labels_of, extensions=IMG_EXTENSIONS, allow_empty=True)
    samples = [(os.fsencode(os.path.relpath(path, folder)), label) for path, label in found]
    samples = [(name, label) for name, label in samples if not name.startswith(b".") and b"/." not in name]
    names, labels = [name for name, _ in samples], torch.tensor([label for _, label in samples], dtype=torch.int64)
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if 0 in counts:
        empty = folder / classes[counts.index(0)]
        raise FileNotFoundError(
            f"{empty} has no images: copy the folder of this class again, or delete it from train and val."
        )
    order = sorted(range(len(names)), key=lambda row: sha256(names[row]).digest())
    return classes, Files(folder, np.array(names), labels)[torch.tensor(order)]


def class_folders(split: Path) -> list[str]:
    """The sorted names of the folders in ``split``, but for hidden ones, whose names begin with a dot."""
    return sorted(entry.name for entry in os.scandir(split) if entry.is_dir() and not entry.name.startswith("."))


# The digest for the id of a run ---------------------------------------------------------------------------------------


def folder_digest(root: str | Path, cache: str | Path) -> str | None:
    """The digest that tells the images of a user's own folder from those of ILSVRC 2012.

    Listing a million files takes a minute, so the answer is kept in ``cache``. It holds for as long as the modification
    times of ``train``, ``val`` and the class folders stay: adding, deleting or renaming a file changes them, writing to
    a file that is there does not (see `forget_digest`). A cache that cannot be written is no error.

    Returns:
        `ImageFolders.digest`. None where no folders are found, and where they hold ILSVRC 2012 itself, as its numbers
        of images and the names of its classes, such as n01440764, say.

    Raises:
        InputError: the folders are incomplete or cannot be read.
    """
    file = Path(cache) / DIGESTS
    with bad_input():
        found = find_imagenet(root)
        if found is None:
            return None
        folder, times = str(found.resolve()), modification_times(found)
        state = sha256(repr(times).encode()).hexdigest()
        kept = kept_digests(file).get(folder)
        if kept and kept.get("times") == state and "digest" in kept:
            return kept["digest"]
        folders = open_imagenet(root)
        digest = None if is_ilsvrc_2012(folders) else folders.digest
        # A change in a folder below a class folder does not show in the times, nor one right after another change.
        flat = all(name.count(b"/") == 1 for files in (folders.train, folders.test) for name in files.names)
        if flat and time.time_ns() - max(times.values()) > SETTLED:
            keep_digests(file, {**kept_digests(file), folder: {"times": state, "digest": digest}})
    return digest


def forget_digest(root: Path, cache: str | Path) -> None:
    """Delete the answer that `folder_digest` keeps for a folder, because a file in it has been overwritten since."""
    file = Path(cache) / DIGESTS
    kept = kept_digests(file)
    if kept.pop(str(root.resolve()), None):
        keep_digests(file, kept)


def modification_times(root: Path) -> dict[str, int]:
    """The modification times, in nanoseconds, of ``train``, ``val`` and their class folders."""

    def folders() -> Iterator[Path]:
        for split in (root / "train", root / "val"):
            yield split
            yield from (split / name for name in class_folders(split))

    return {os.path.relpath(folder, root): folder.stat().st_mtime_ns for folder in folders()}


def is_ilsvrc_2012(folders: ImageFolders) -> bool:
    """Whether the numbers of images and the names of the classes are those of ILSVRC 2012."""
    numbers = (len(folders.classes), len(folders.train), len(folders.test))
    return numbers == ILSVRC_2012 and all(re.fullmatch(r"n[0-9]{8}", name) for name in folders.classes)


def kept_digests(file: Path) -> dict[str, dict[str, Any]]:
    """The answers in the cache, by folder, each with the keys times and digest; none if the file is damaged."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {folder: entry for folder, entry in entries if isinstance(entry, dict)}


def keep_digests(file: Path, digests: dict[str, dict[str, Any]]) -> None:
    """Replace the answers in the cache, or leave them as they are if the cache cannot be written."""
    with suppress(OSError, InputError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(digests, indent=1))
