"""A run of the project's own harness as a contender: its step and its epochs, without evaluation and record."""

import torch
from torch import Tensor

from rst.experiments.build import set_backends
from rst.experiments.compose import compose
from rst.experiments.runs.record import open_record
from rst.experiments.training.loop import Run
from rst.experiments.training.ranks import ALONE

DIGITS = ("dataset.source=digits", "dataset.test_images=100", "wandb.mode=disabled", "recipe.epochs=10000")
"""The embedded digits in the shape of the data set's images, which need no file, and more epochs than are measured."""


class Trainer:
    """The run that these overrides describe, ready for its first step. A call makes one step, on always one batch.

    Nothing is written: only `Run.to_the_end` would begin a record.
    """

    def __init__(self, device: torch.device, *overrides: str, images: int = 512) -> None:
        self.spec = compose([*DIGITS, f"dataset.train_images={images}", f"device={device}", *overrides])
        self.run = Run(self.spec, open_record(self.spec), ALONE, show_progress=False)
        self.epochs_done = 0
        self.batch: tuple[Tensor, Tensor] = next(self.run.loader.epoch(0))
        self.run.train_step.warm_up(*self.batch)

    def __call__(self) -> None:
        set_backends(self.spec)  # Contenders of other precision take turns with this one.
        self.run.train_step(*self.batch)

    def steps(self, count: int) -> None:
        """So many steps."""
        for _ in range(count):
            self()

    def epoch(self) -> None:
        """The steps of the next epoch, with its augmented batches."""
        set_backends(self.spec)
        for images, labels in self.run.loader.epoch(self.epochs_done):
            self.run.train_step(images, labels)
        self.epochs_done += 1
