"""Cutout and mixup, which change a batch of normalised images; flips and crops are made by the loaders.

All random numbers come from the generator that the caller passes in, so that a batch depends on nothing else.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rst.experiments.keys import Augmentation

BatchTransform = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]
"""``(images [B, C, H, W], labels [B], generator) -> (images, labels)``. It may overwrite the images it is given."""


def transforms(augmentation: Augmentation, image_size: int, num_classes: int) -> list[BatchTransform]:
    """The transforms that the keys ask for, in the order in which a loader applies them: mixup, then cutout.

    Args:
        augmentation: the keys of the config group.
        image_size: side of the images in pixels.
        num_classes: length of the soft targets that mixup makes.

    Raises:
        ValueError: the hole of cutout is larger than the images.
    """
    if augmentation.cutout > image_size:
        raise ValueError(
            f"augmentation.cutout={augmentation.cutout} is larger than the images: write 0 (off) to {image_size}."
        )
    found: list[BatchTransform] = []
    if augmentation.mixup_alpha:
        found.append(Mixup(augmentation.mixup_alpha, num_classes))
    if augmentation.cutout:
        found.append(Cutout(augmentation.cutout, augmentation.cutout_per_image))
    return found


@dataclass(frozen=True)
class Cutout:
    """Fill a square hole with 0, which is the mean colour of normalised images (DeVries and Taylor, 2017).

    The centre of the hole is uniform over the pixels. What lies outside the image is cut off, so that holes at the
    border are smaller.

    Args:
        size: side of the hole in pixels.
        per_image: draw one hole for each image. The default is one for the whole batch, as in the code of the paper's
            authors.
    """

    size: int
    per_image: bool = False

    def __call__(self, images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Cut the hole into ``images`` [B, C, H, W] in place; the labels stay as they are."""
        height, width = images.shape[2:]
        holes = len(images) if self.per_image else 1
        centres = torch.stack([torch.randint(length, (holes, 1), generator=generator) for length in (height, width)])
        row, column = to_device(centres, images.device)
        rows, columns = self._covered(row, height), self._covered(column, width)
        return images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0), labels

    def _covered(self, centres: Tensor, length: int) -> Tensor:
        """Which of ``length`` pixels each hole covers: bool [holes, length], of centres [holes, 1]."""
        offset = torch.arange(length, device=centres.device) - centres + self.size // 2
        return (offset >= 0) & (offset < self.size)


@dataclass(frozen=True)
class Mixup:
    """Mix each image x with another one x' of its batch: w x + (1 - w) x', and the labels alike (Zhang et al., 2018).

    One weight is drawn for the batch: λ ~ Beta(alpha, alpha) and w = max(λ, 1 - λ). The other image is the one at the
    same place in the reversed batch.

    Args:
        alpha: parameter of the Beta distribution, above 0.
        num_classes: length of the soft targets.
    """

    alpha: float
    num_classes: int

    def __call__(self, images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """The mixed images [B, C, H, W] and the soft targets [B, num_classes] of int64 labels [B]."""
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        weight = random.Random(seed).betavariate(self.alpha, self.alpha)
        weight = max(weight, 1 - weight)
        targets = (labels[:, None] == torch.arange(self.num_classes, device=labels.device)).to(images.dtype)
        return images.flip(0).lerp_(images, weight), targets.flip(0).lerp_(targets, weight)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small CPU tensor to ``device`` without making the CPU wait for the copy."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
