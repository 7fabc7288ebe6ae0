"""Batches of images in files, which worker processes decode and crop while the network trains."""

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Thread, current_thread, main_thread

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from rst.experiments.data.augment import BatchTransform, to_device
from rst.experiments.data.crops import centre_crop, decode, random_crop
from rst.experiments.data.image_folders import Files
from rst.experiments.data.loader import normalisation, normalised, order_of_epoch, share_of_batch
from rst.experiments.devices import available_cores
from rst.streams import stream

Crop = Callable[[Image.Image, int], Image.Image]
"""``(image, its row in the split) -> the square that the network sees``. It runs in a worker."""


class FileLoader:
    """Training batches of random crops of image files, with the interface of `rst.experiments.data.Loader`.

    The order of the images is a function of (seed, epoch), a crop one of (seed, epoch, row) and the transforms one of
    (seed, epoch, step). None depends on the device, on the workers or on the number of ranks.

    Args:
        files: the training images.
        image_size: side of the crops in pixels.
        batch_size: images in a step of all ranks together.
        mean: mean of each channel, of pixels from 0 to 1.
        std: standard deviation of each channel, of pixels from 0 to 1.
        flip: mirror each crop left to right with probability 1/2.
        transforms: applied in this order to the normalised batch of all ranks.
        seed: seed of the random streams "order", "crop" and "augment".
        device: where the batches are put.
        rank: number of this rank, from 0.
        world_size: number of ranks.
        workers: number of processes that decode; 0 decodes in this process. The default divides the cores of this
            machine by the number of ranks.
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
        self.share = share_of_batch(batch_size, rank, world_size)
        self.files, self.batch_size, self.seed, self.transforms = files, batch_size, seed, tuple(transforms)
        self.device = torch.device(device)
        self.workers = max(1, available_cores() // world_size) if workers is None else workers
        self.crop = partial(random_crop, size=image_size, flip=flip, seed=seed)
        self.scale, self.shift = normalisation(mean, std, self.device)

    def __len__(self) -> int:
        """Steps in an epoch. The last partial batch is dropped."""
        return len(self.files) // self.batch_size

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from ``first_step`` on: normalised images, float32 [B, 3, H, W], and labels.

        B is this rank's part of ``batch_size``. The labels are int64 [B], or soft targets [B, num_classes] with mixup.

        Raises:
            ValueError: a file cannot be decoded; the sentence names it.
        """
        order = order_of_epoch(len(self.files), self.seed, epoch)
        steps = range(first_step, len(self))
        batches = [order[step * self.batch_size : (step + 1) * self.batch_size] for step in steps]
        if not self.transforms:  # Transforms need the whole batch, because mixup pairs images of different ranks.
            batches = [batch[self.share] for batch in batches]
        decoded = decoded_batches(self.files, partial(self.crop, epoch=epoch), batches, self.device, self.workers)
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
    """The central crops of all files in order, normalised; the last batch may be smaller.

    Yields images, float32 [B, 3, H, W] with H = W = ``image_size`` pixels, and labels, int64 [B], on ``device``.
    ``workers`` processes decode, by default one for each core; 0 decodes in this process.

    Raises:
        ValueError: a file cannot be decoded; the sentence names it.
    """
    device = torch.device(device)
    scale, shift = normalisation(mean, std, device)
    workers = available_cores() if workers is None else workers
    batches = torch.arange(len(files)).split(batch_size)
    decoded = decoded_batches(files, partial(centre_crop, size=image_size), batches, device, workers)
    for batch, pixels in zip(batches, decoded, strict=True):
        yield normalised(pixels, scale, shift), to_device(files.labels[batch], device)


# Workers --------------------------------------------------------------------------------------------------------------


def decoded_batches(
    files: Files, crop: Crop, batches: Sequence[Tensor], device: torch.device, workers: int
) -> Iterator[Tensor]:
    """The crops of each batch of rows, uint8 [B, 3, size, size] on ``device``; workers stay two batches ahead.

    Each batch is divided among all workers. So the first batch comes soon, and the workers share little memory with
    this process at a time.

    Raises:
        ValueError: a file cannot be decoded, which the sentence names, or a worker was killed.
    """
    chunks_of_batches = [[chunk.tolist() for chunk in batch.chunk(max(workers, 1))] for batch in batches]
    loader = DataLoader(
        DecodedCrops(files, crop),
        batch_size=None,
        sampler=[chunk for chunks in chunks_of_batches for chunk in chunks],
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=start_worker,
        generator=Generator(),  # The default draws from the global generator, from which dropout draws, too.
    )
    with own_signal_handler():
        decoded = iter(loader)
    try:
        for chunks in chunks_of_batches:
            images = []
            for _ in chunks:
                crops = _next(decoded)
                if isinstance(crops, ValueError):
                    raise crops
                images.append(crops.to(device, non_blocking=True))
            yield torch.cat(images).permute(0, 3, 1, 2).contiguous()
    finally:
        del decoded  # Ends the workers at once; a traceback that refers to this frame would keep them alive.


@contextmanager
def own_signal_handler() -> Iterator[None]:
    """Keep the handler of SIGCHLD that torch replaces when it starts workers.

    At the death of a worker torch's raises wherever the process is, such as in the middle of a step. Without it, the
    loader finds out by itself within 5 seconds of waiting for that worker.
    """
    if current_thread() is not main_thread() or not hasattr(signal, "SIGCHLD"):  # Then torch leaves it alone.
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _next(decoded: Iterator[Tensor | ValueError]) -> Tensor | ValueError:
    """What a worker has made next; a `ValueError` as well where a worker is gone."""
    try:
        return next(decoded)
    except (ConnectionError, EOFError, FileNotFoundError):
        pass  # What a dead worker had made cannot be fetched from it any more. Errors of its own come as values.
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
    return ValueError(
        "a process that decodes images was killed, as where memory runs out: take a smaller recipe.batch_size or "
        "dataset.image_size."
    )


class DecodedCrops(TorchDataset[Tensor | ValueError]):
    """The crops of a list of rows, uint8 [n, size, size, 3], made in a worker.

    An error is returned, not raised: raised in a worker, it would reach the user inside the traceback of two processes.
    """

    def __init__(self, files: Files, crop: Crop) -> None:
        self.files, self.crop = files, crop

    def __getitem__(self, rows: list[int]) -> Tensor | ValueError:
        try:
            pixels = [np.asarray(self.crop(decode(self.files.path(row)), row)) for row in rows]
        except ValueError as error:
            return error
        return torch.from_numpy(np.stack(pixels))


def start_worker(_: int) -> None:
    """Make this worker ignore requests to stop, which reach every process of a job, and warnings about odd metadata.

    Only the process that trains answers such a request: it needs its workers until its checkpoint is written.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS does not have it.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        Thread(target=exit_when_told_by_parent, daemon=True).start()
    warnings.simplefilter("ignore")


def exit_when_told_by_parent() -> None:
    """End this process at a SIGTERM from its parent, the process that trains; ignore one from anybody else."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
