"""Splits: images and labels in memory, in one canonical order, and what is done to them before training."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rst.streams import stream


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels: uint8 ``[N, C, H, W]`` and int64 ``[N]``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> "Split":
        return Split(self.images[rows], self.labels[rows])

    def to(self, device: torch.device | str) -> "Split":
        """The same split on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, each in canonical order."""

    train: Split
    test: Split

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the pixels and labels of both splits, as they stand."""
        state = sha256()
        for split in (self.train, self.test):
            state.update(split.images.contiguous().numpy().data)
            state.update(split.labels.contiguous().numpy().data)
        return state.hexdigest()


def canonical(split: Split) -> Split:
    """The split sorted by (SHA-256 of the image's pixels, label): one order whatever the source.

    It is random with respect to the classes, so that the first n images are a fair sample.
    """
    pixels = split.images.flatten(1).contiguous().numpy()
    keys = [(sha256(image.data).digest(), label) for image, label in zip(pixels, split.labels.tolist(), strict=True)]
    return split[torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))]


def with_label_noise(labels: Tensor, fraction: float, num_classes: int, seed: int) -> Tensor:
    """A copy in which exactly ``round(fraction * N)`` labels are another class, drawn uniformly."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"dataset.label_noise={fraction} is not a fraction: write a number from 0 to 1.")
    generator = stream("label_noise", seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    shift = torch.randint(1, num_classes, chosen.shape, generator=generator)
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + shift) % num_classes
    return noisy


class Rows(Protocol):
    """Anything that has rows and can be cut down to some of them."""

    def __len__(self) -> int: ...

    def __getitem__(self: "AnyRows", rows: Tensor, /) -> "AnyRows": ...


AnyRows = TypeVar("AnyRows", bound=Rows)


def hold_out(split: AnyRows, n: int, seed: int) -> tuple[AnyRows, AnyRows]:
    """(kept, held): ``n`` random images held out, for choices that must not be made on the test set; both in order."""
    if not 0 <= n < len(split):
        raise ValueError(f"dataset.validation={n} leaves nothing to train on: write 0 to {len(split) - 1}.")
    order = torch.randperm(len(split), generator=stream("hold_out", seed))
    return split[order[n:].sort().values], split[order[:n].sort().values]
