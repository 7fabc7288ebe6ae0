"""The input pipeline beside torchvision's, and beside the training step that it feeds."""

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from rst.experiments.bench.peers import PilImages, data_loader
from rst.experiments.bench.table import Row, Table
from rst.experiments.bench.trainer import Trainer
from rst.experiments.bench.turns import Step, median_ratio, one_thread, progress, take_turns, wall_clock
from rst.experiments.data import Loader

BATCH = 256
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SETTINGS = ("scale=cpu", "model=wrn10_1")
NOTE = (
    "Augmented images a second that reach the device: our loader on one thread, beside a DataLoader with two "
    "workers and torchvision's flip, reflect-padded crop and normalisation, which the workers have begun already. "
    "The share is the time of our loader for a batch over that of a plain training step of a WRN-10-1 on it, in "
    "the settings of scale=cpu."
)


def measure(device: torch.device, rounds: int = 9, images: int = 10_000, settings: Sequence[str] = SETTINGS) -> Table:
    """One row: both speeds, their ratio and the share."""
    pixels = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8)
    labels = torch.zeros(images, dtype=torch.int64)
    ours = Loader(pixels, labels, batch_size=BATCH, mean=MEAN, std=STD, flip=True, crop_padding=4, device=device)
    theirs = data_loader(PilImages(pixels, labels, MEAN, STD), BATCH)
    step = Trainer(device, "scheme=sgd", *settings)
    epochs = itertools.count()

    def our_epoch() -> None:
        with one_thread():
            consume(ours.epoch(next(epochs)), device)

    contenders: dict[str, Step] = {"rst": our_epoch, "torchvision": lambda: consume(theirs, device), "step": step}
    with progress("loader", rounds) as bar:
        times = take_turns(contenders, rounds, wall_clock(device), bar)
    seen, batches = BATCH * len(ours), len(ours)
    row: Row = {
        "images_per_second": seen / sorted(times["rst"])[rounds // 2],
        "images_per_second_of_torchvision": seen / sorted(times["torchvision"])[rounds // 2],
        "over_torchvision": median_ratio(times["torchvision"], times["rst"]),
        "share_of_a_training_step": median_ratio(times["rst"], times["step"]) / batches,
    }
    return Table("loader", "The input pipeline", NOTE, rounds, [row])


def consume(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> None:
    """Put every batch on the device."""
    for images, _ in batches:
        images.to(device)
