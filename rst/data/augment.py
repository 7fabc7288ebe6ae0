"""What is done to a batch on its way to the network; every draw comes from the step's own generator."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

BatchTransform = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]
"""``(images [B, C, H, W], labels [B], generator) -> (images, labels)``; may overwrite the images it is given."""


@dataclass(frozen=True)
class Augmentation:
    """One augmentation group of the configuration; all off by default.

    ``flip``: mirror each image with probability 1/2. ``crop_padding``: pixels of reflect padding before a random crop
    back to the image's size. ``cutout``: side of the hole in pixels; ``cutout_per_image``: one hole an image, not one
    a batch. ``mixup_alpha``: the weight is drawn from Beta(alpha, alpha).
    """

    flip: bool = False
    crop_padding: int = 0
    cutout: int = 0
    cutout_per_image: bool = False
    mixup_alpha: float = 0.0

    def __post_init__(self) -> None:
        for key in ("crop_padding", "cutout"):
            value = getattr(self, key)
            if value < 0 or value != int(value):
                raise ValueError(f"augmentation.{key}={value} is not a number of pixels: write 0 (off), 1, 2, ...")
        if not 0 <= self.mixup_alpha < float("inf"):
            raise ValueError(f"augmentation.mixup_alpha={self.mixup_alpha} is out of range: write 0 (off) or more.")

    def transforms(self, image_size: int, num_classes: int) -> list[BatchTransform]:
        """What follows the crop and flip, in order: mixup, then cutout."""
        if self.cutout > image_size:
            raise ValueError(
                f"augmentation.cutout={self.cutout} is larger than the images: write 0 (off) to {image_size}."
            )
        transforms: list[BatchTransform] = []
        if self.mixup_alpha:
            transforms.append(Mixup(self.mixup_alpha, num_classes))
        if self.cutout:
            transforms.append(Cutout(self.cutout, per_image=self.cutout_per_image))
        return transforms


@dataclass(frozen=True)
class Cutout:
    """A square hole filled with 0, the mean colour of normalised images (DeVries & Taylor, 2017).

    Its centre is uniform over the pixels and its part outside the image is clipped, so that holes at the border are
    smaller. One hole a batch, as in the paper's code, or one an image.
    """

    size: int
    per_image: bool = False

    def __call__(self, images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Cut the hole into ``images`` in place."""
        height, width = images.shape[2:]
        holes = len(images) if self.per_image else 1
        centres = torch.stack([torch.randint(length, (holes, 1), generator=generator) for length in (height, width)])
        row, column = to_device(centres, images.device)
        rows, columns = self._covered(row, height), self._covered(column, width)
        return images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0), labels

    def _covered(self, centres: Tensor, length: int) -> Tensor:
        """Bool ``[holes, length]``: the pixels from centre - size // 2 on, ``size`` of them, that exist."""
        offset = torch.arange(length, device=centres.device) - centres + self.size // 2
        return (offset >= 0) & (offset < self.size)


@dataclass(frozen=True)
class Mixup:
    """x <- w x + (1 - w) x', likewise the labels as soft targets ``[B, num_classes]`` (Zhang et al., 2018, eq. 1).

    One weight a batch: lambda ~ Beta(alpha, alpha), w = max(lambda, 1 - lambda); x' is the batch in reverse order.
    """

    alpha: float
    num_classes: int

    def __call__(self, images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Mix the batch with itself."""
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        weight = random.Random(seed).betavariate(self.alpha, self.alpha)
        weight = max(weight, 1 - weight)
        targets = (labels[:, None] == torch.arange(self.num_classes, device=labels.device)).to(images.dtype)
        return images.flip(0).lerp_(images, weight), targets.flip(0).lerp_(targets, weight)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small CPU tensor to ``device`` without waiting for it."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
