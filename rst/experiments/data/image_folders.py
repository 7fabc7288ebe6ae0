"""ImageNet, and the images of users: folders of image files, one folder for each class."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rst.experiments.data.crops import decode
from rst.experiments.devices import available_cores

PLACES = (".", "imagenet", "ILSVRC/Data/CLS-LOC")
"""Where the folders ``train`` and ``val`` are looked for below the root, in this order."""

TESTS = ("test", "val", "valid")
"""Which folder beside a user's own ``train`` has the test images: the first of these that has class folders."""

HELD_OUT = 1 / 5
"""The share of each class that is held out for the test where a user's own folder has no test images of its own."""


@dataclass(frozen=True)
class Layout:
    """Where the folders of the classes are: in ``train`` and ``test``, or all in ``train``.

    Where there is no ``test``, a part of each class is held out for it: see `hold_out_of_each_class`.
    """

    root: Path
    train: Path
    test: Path | None

    @property
    def note(self) -> str:
        """A sentence that says which images are the test images."""
        if self.test is not None:
            return f"those in {self.test}."
        folders = " or ".join(f"{name}/" for name in TESTS)
        return f"{self.root} has no {folders}, so that a fifth of each class is held out of training, always the same."


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
        # NumPy takes a tensor of one row for a number.
        names = self.names[rows.numpy() if isinstance(rows, Tensor) else rows]
        return Files(self.folder, names, self.labels[rows])

    def path(self, row: int) -> str:
        """The path of the file in one row."""
        return os.path.join(self.folder, os.fsdecode(self.names[row]))


@dataclass(frozen=True, eq=False)
class ImageFolders:
    """The image files of a `Layout`.

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
        for split, files in ((b"train", self.train), (b"val", self.test)):  # whatever the folders are called
            for row, name in enumerate(files.names):
                state.update(b"%s/%s:%d\n" % (split, name, os.path.getsize(files.path(row))))
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
            tqdm(total=total, desc="Checking", unit=" images") as bar,
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


def open_folders(name: str, root: str | Path) -> ImageFolders:
    """List the images of the data set ``name``, "imagenet" or "folder", in its `layout`.

    Raises:
        FileNotFoundError: a folder or the images of a class are missing.
        ValueError: training and test images have different classes, or a class has too few images.
    """
    found = layout(name, root)
    classes, train = image_files(found.train)
    if found.test is None:
        train, test = hold_out_of_each_class(train, classes)
        return ImageFolders(found.root, classes, train, test)
    test_classes, test = image_files(found.test)
    if differing := sorted({*classes} ^ {*test_classes}):
        has, lacks = (found.train, found.test) if differing[0] in classes else (found.test, found.train)
        raise ValueError(f"{has} has the class {differing[0]} and {lacks} does not: give both the same class folders.")
    return ImageFolders(found.root, classes, train, test)


def layout(name: str, root: str | Path) -> Layout:
    """Where the images of the data set ``name``, "imagenet" or "folder", are.

    ImageNet's folders are ``train`` and ``val``, at any of `PLACES` below ``root``. A user's own are ``train`` and one
    of `TESTS`; ``train`` alone; or, where there is no ``train``, those of the classes in ``root`` itself.

    Raises:
        FileNotFoundError: they are not there.
    """
    if name == "imagenet":
        for folder in places(root):
            if not lacking(folder):
                return Layout(folder, folder / "train", folder / "val")
        tried = "; ".join(f"{folder} has no {' and no '.join(lacking(folder))}" for folder in places(root))
        raise FileNotFoundError(
            f"No ImageNet images ({tried}): write dataset.root=<folder with train/<class>/*.JPEG and "
            f"val/<class>/*.JPEG>, or try dataset.source=digits."
        )
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset.root={root} is not a folder: write the one with a folder for each class.")
    tests = [folder / test for test in TESTS if (folder / test).is_dir()]
    if (folder / "train").is_dir():
        return Layout(folder, folder / "train", next(filter(class_folders, tests), None))
    if tests:
        raise FileNotFoundError(f"{tests[0]} has no folder train beside it: put the training images there.")
    return Layout(folder, folder, None)


def is_there(name: str, root: str | Path) -> bool:
    """Whether the data set ``name`` has a `layout` below ``root``."""
    try:
        return bool(layout(name, root))
    except FileNotFoundError:
        return False


def places(root: str | Path) -> list[Path]:
    """The folders that `PLACES` name below ``root``."""
    return [Path(root) / place for place in PLACES]


def lacking(folder: Path) -> list[str]:
    """Which of the folders ``train`` and ``val`` are missing in ``folder``."""
    return [split for split in ("train", "val") if not (folder / split).is_dir()]


def hold_out_of_each_class(files: Files, classes: list[str]) -> tuple[Files, Files]:
    """Divide the images into those to train on and, of each class, `HELD_OUT`, but at least one, for the test.

    The held-out ones are the first of their class in the order of the files, which is random but always the same: it
    depends on the names of the files alone. An image that is added moves no other one of another class.

    Raises:
        ValueError: a class has a single image.
    """
    held_out = torch.zeros(len(files), dtype=torch.bool)
    for label, name in enumerate(classes):
        rows = (files.labels == label).nonzero().flatten()
        if len(rows) < 2:
            raise ValueError(f"{files.folder / name} has one image, and needs two: one to train on, one for the test.")
        held_out[rows[: max(1, round(HELD_OUT * len(rows)))]] = True
    return files[(~held_out).nonzero().flatten()], files[held_out.nonzero().flatten()]


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
            f"{empty} has no images: copy the folder of this class again, or delete it, for the test images as well."
        )
    order = sorted(range(len(names)), key=lambda row: sha256(names[row]).digest())
    return classes, Files(folder, np.array(names), labels)[torch.tensor(order)]


def class_folders(split: Path) -> list[str]:
    """The sorted names of the folders in ``split``, but for hidden ones, whose names begin with a dot."""
    return sorted(entry.name for entry in os.scandir(split) if entry.is_dir() and not entry.name.startswith("."))
