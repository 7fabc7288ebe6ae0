"""ImageNet: folders of image files, decoded and cropped by worker processes while the network trains."""

import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from threading import Thread

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from rst.data.augment import BatchTransform, to_device
from rst.data.loader import normalisation, normalised, order_of_epoch, share_of_batch
from rst.streams import stream

PLACES = (".", "imagenet", "ILSVRC/Data/CLS-LOC")
"""Where ``train`` and ``val`` are looked for below the root, in this order."""

Cut = Callable[[Image.Image, int], Image.Image]
"""``(image, its row in the split) -> the square that the network sees``; runs in a worker."""


# Folders and files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Files:
    """Image files, by name relative to ``folder``, and their labels: int64 ``[N]``.

    ``names`` is one array of bytes, because a list of a million strings would be copied into every worker.
    """

    folder: Path
    names: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: slice | Tensor) -> "Files":
        return Files(self.folder, self.names[rows], self.labels[rows])

    def path(self, row: int) -> str:
        """The file of one row."""
        return os.path.join(self.folder, os.fsdecode(self.names[row]))


@dataclass(frozen=True, eq=False)
class ImageFolders:
    """``root/train/<class>/*`` and ``root/val/<class>/*``, each in canonical order; labels count the sorted classes.

    The order is by the hash of the file's name, random with respect to the classes, so that the first n images are a
    fair sample.
    """

    root: Path
    classes: list[str]
    train: Files
    test: Files

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the names and sizes of all files."""
        state = sha256()
        for files in (self.train, self.test):
            for row, name in enumerate(files.names):
                state.update(b"%s/%s:%d\n" % (files.folder.name.encode(), name, os.path.getsize(files.path(row))))
        return state.hexdigest()

    def check(self) -> None:
        """Decode every file, as training will: `ValueError` naming those that are damaged."""
        from tqdm import tqdm

        total, damaged = len(self.train) + len(self.test), []
        with (
            ThreadPoolExecutor(available_cores()) as threads,
            tqdm(total=total, desc="Checking ImageNet", unit=" images") as bar,
        ):
            for files in (self.train, self.test):
                parts = [range(len(files))[start : start + 100] for start in range(0, len(files), 100)]
                for part, found in zip(parts, threads.map(partial(damaged_files, files), parts), strict=True):
                    damaged += found
                    bar.update(len(part))
        if damaged:
            names = ", ".join(damaged[:10]) + (", ..." if len(damaged) > 10 else "")
            raise ValueError(
                f"{len(damaged)} of the {total:,} images in {self.root} cannot be decoded, copy them again: {names}."
            )


def open_imagenet(root: str | Path) -> ImageFolders:
    """Find the folders ``train`` and ``val`` in ``root``, ``root/imagenet`` or ``root/ILSVRC/Data/CLS-LOC``.

    Raises `FileNotFoundError` where they, or the images of a class, are missing, and `ValueError` where their classes
    differ.
    """
    lacking = {
        folder: [split for split in ("train", "val") if not (folder / split).is_dir()]
        for folder in (Path(root) / place for place in PLACES)
    }
    found = next((folder for folder, lacks in lacking.items() if not lacks), None)
    if found is None:
        tried = "; ".join(f"{folder} has no {' and no '.join(lacks)}" for folder, lacks in lacking.items())
        raise FileNotFoundError(
            f"No ImageNet images ({tried}): write dataset.root=<folder with train/<class>/*.JPEG and "
            f"val/<class>/*.JPEG>, or try dataset.source=digits."
        )
    (classes, train), (test_classes, test) = image_files(found / "train"), image_files(found / "val")
    if differing := sorted({*classes} ^ {*test_classes}):
        has, lacks = ("train", "val") if differing[0] in classes else ("val", "train")
        raise ValueError(
            f"{found / has} has the class {differing[0]} and {found / lacks} has not: both need the same class folders."
        )
    return ImageFolders(found, classes, train, test)


def image_files(folder: Path) -> tuple[list[str], Files]:
    """The sorted classes and, in canonical order, the images of one split."""
    from torchvision.datasets import ImageFolder

    if not any(entry.is_dir() for entry in os.scandir(folder)):
        raise FileNotFoundError(f"{folder} has no class folders: move each image to {folder}/<class>/.")
    found = ImageFolder(folder, allow_empty=True)
    counts = np.bincount(found.targets, minlength=len(found.classes)) if found.targets else [0]
    if 0 in counts:
        empty = folder / found.classes[list(counts).index(0)]
        raise FileNotFoundError(f"{empty} has no images: copy the folder of this class again, or delete it everywhere.")
    names = [os.fsencode(os.path.relpath(path, folder)) for path, _ in found.samples]
    order = sorted(range(len(names)), key=lambda row: sha256(names[row]).digest())
    return found.classes, Files(folder, np.array(names), torch.tensor(found.targets))[torch.tensor(order)]


# Images ---------------------------------------------------------------------------------------------------------------


def decode(path: str) -> Image.Image:
    """The image in RGB, whatever its mode; by Pillow, since torchvision's decoder can crash Python on a damaged file.

    Raises `ValueError` naming the file.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8, not scale
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # damage shows as an error of many kinds
        raise ValueError(f"{path} cannot be decoded ({error}): copy or download it again.") from error


def damaged_files(files: Files, rows: range) -> list[str]:
    """Those of the rows' files that do not decode."""
    damaged = []
    for row in rows:
        try:
            decode(files.path(row))
        except ValueError:
            damaged.append(files.path(row))
    return damaged


def crop_box(width: int, height: int, generator: Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random crop (Szegedy et al., 2015): 8 to 100 % of the area, 3/4 to 4/3 in aspect.

    The area is uniform, the aspect log-uniform. After ten draws that do not fit: the largest central crop that does.
    """
    for share, tilt in torch.rand(10, 2, generator=generator).tolist():
        area, aspect = (0.08 + 0.92 * share) * width * height, (4 / 3) ** (2 * tilt - 1)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(torch.randint(room + 1, (), generator=generator)) for room in (width - w, height - h))
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_crop(image: Image.Image, row: int, *, size: int, flip: bool, seed: int, epoch: int) -> Image.Image:
    """What training sees: a `crop_box`, resized, and mirrored with probability 1/2 if ``flip``."""
    generator = stream("crop", seed, epoch, row)
    box = crop_box(*image.size, generator)
    crop = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    mirror = flip and torch.rand((), generator=generator) < 0.5
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else crop


def centre_crop(image: Image.Image, row: int, *, size: int) -> Image.Image:
    """What evaluation sees: the shorter side resized to 256/224 of ``size``, and the centre of that."""
    shorter = round(size * 256 / 224)
    width, height = (shorter * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


# Workers --------------------------------------------------------------------------------------------------------------


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Decoded(TorchDataset[Tensor | ValueError]):
    """What a worker makes of a list of rows: uint8 ``[n, size, size, 3]``, or the error, for the trainer to raise."""

    def __init__(self, files: Files, cut: Cut) -> None:
        self.files, self.cut = files, cut

    def __getitem__(self, rows: list[int]) -> Tensor | ValueError:
        try:
            pixels = [np.asarray(self.cut(decode(self.files.path(row)), row)) for row in rows]
        except ValueError as error:  # raised here, it would reach the user inside the traceback of two processes
            return error
        return torch.from_numpy(np.stack(pixels))


def start_worker(_: int) -> None:
    """Leave stop requests, which reach every process of a job, to the trainer; be quiet about odd EXIF."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        Thread(target=exit_when_told_by_parent, daemon=True).start()
    warnings.simplefilter("ignore")


def exit_when_told_by_parent() -> None:
    """Let SIGTERM end this process only if the trainer has sent it."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


def decoded_batches(
    files: Files, cut: Cut, batches: Sequence[Tensor], device: torch.device, workers: int
) -> Iterator[Tensor]:
    """The images of each batch of rows, uint8 ``[B, 3, size, size]`` on ``device``; workers stay two batches ahead.

    Every batch is split over all workers, so that the first one comes soon and little memory is shared at a time.
    """
    split = [[part.tolist() for part in batch.chunk(max(workers, 1))] for batch in batches]
    parts = iter(
        DataLoader(
            Decoded(files, cut),
            batch_size=None,
            sampler=[part for batch in split for part in batch],
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=start_worker,
            generator=Generator(),  # by default it draws from the global one, which dropout reads
        )
    )
    try:
        for batch in split:
            images = []
            for _ in batch:
                part = next(parts)
                if isinstance(part, ValueError):
                    raise part
                images.append(part.to(device, non_blocking=True))
            yield torch.cat(images).permute(0, 3, 1, 2).contiguous()
    finally:
        del parts  # ends the workers now, where a traceback would keep them


class FileLoader:
    """Training batches of random-resized crops, with the interface of `rst.data.Loader`.

    The order is a function of (seed, epoch), a crop of (seed, epoch, row), the ``transforms`` of (seed, epoch, step):
    none of the device, the workers or the number of ranks. ``batch_size`` counts all ranks' images. ``workers``
    processes decode, by default one a core, shared among the ranks; 0 decodes in this process.
    """

    def __init__(
        self,
        files: Files,
        *,
        image_size: int,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        flip: bool = False,
        transforms: Sequence[BatchTransform] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
    ) -> None:
        self.share = share_of_batch(batch_size, len(files), rank, world_size)
        self.files, self.batch_size, self.seed, self.transforms = files, batch_size, seed, tuple(transforms)
        self.device = torch.device(device)
        self.workers = max(1, available_cores() // world_size) if workers is None else workers
        self.cut = partial(random_crop, size=image_size, flip=flip, seed=seed)
        self.scale, self.shift = normalisation(mean, std, self.device)

    def __len__(self) -> int:
        """Steps an epoch; the last partial batch is dropped."""
        return len(self.files) // self.batch_size

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``first_step``, ``first_step + 1``, ... of an epoch: float32 ``[B, 3, H, W]`` and labels ``[B]``.

        The labels are int64, or soft targets ``[B, num_classes]`` under mixup. Raises `ValueError` on a damaged file.
        """
        order = order_of_epoch(len(self.files), self.seed, epoch)
        steps = range(first_step, len(self))
        batches = [order[step * self.batch_size : (step + 1) * self.batch_size] for step in steps]
        if not self.transforms:  # mixup pairs images across ranks, so that transforms need the whole batch
            batches = [batch[self.share] for batch in batches]
        decoded = decoded_batches(self.files, partial(self.cut, epoch=epoch), batches, self.device, self.workers)
        for step, batch, pixels in zip(steps, batches, decoded, strict=True):
            images = normalised(pixels, self.scale, self.shift)
            labels = to_device(self.files.labels[batch], self.device)
            if self.transforms:
                generator = stream("augment", self.seed, epoch, step)
                for transform in self.transforms:
                    images, labels = transform(images, labels, generator)
                images, labels = images[self.share], labels[self.share]
            yield images, labels


def centre_crop_batches(
    files: Files,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    *,
    image_size: int,
    workers: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image of ``files`` in order, its `centre_crop` normalised; the last batch may be smaller.

    ``workers`` as for `FileLoader`.
    """
    device = torch.device(device)
    scale, shift = normalisation(mean, std, device)
    workers = available_cores() if workers is None else workers
    batches = torch.arange(len(files)).split(batch_size)
    decoded = decoded_batches(files, partial(centre_crop, size=image_size), batches, device, workers)
    for batch, pixels in zip(batches, decoded, strict=True):
        yield normalised(pixels, scale, shift), to_device(files.labels[batch], device)
