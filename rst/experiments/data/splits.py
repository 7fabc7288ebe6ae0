"""Images and labels in memory, their canonical order, label noise and held-out images."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rst.streams import stream


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 [N, C, H, W], and their labels, int64 [N]."""

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
    """A training split and a test split, each in canonical order (see `canonical`)."""

    train: Split
    test: Split

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) of the pixels and labels of both splits, in their order."""
        state = sha256()
        for split in (self.train, self.test):
            state.update(split.images.contiguous().numpy().data)
            state.update(split.labels.contiguous().numpy().data)
        return state.hexdigest()


def canonical(split: Split) -> Split:
    """The split sorted by (SHA-256 of the image's pixels, label), so that its order does not depend on its source.

    This order is random with respect to the classes: the first n images are a fair sample of all.
    """
    pixels = split.images.flatten(1).contiguous().numpy()
    keys = [(sha256(image.data).digest(), label) for image, label in zip(pixels, split.labels.tolist(), strict=True)]
    return split[torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))]


def with_label_noise(labels: Tensor, fraction: float, num_classes: int, seed: int) -> Tensor:
    """A copy of the labels in which ``round(fraction * N)`` randomly chosen ones are replaced by another class.

    Args:
        labels: int64 [N], from 0 to ``num_classes`` - 1.
        fraction: from 0 to 1.
        num_classes: the new class is uniform over the ``num_classes`` - 1 others.
        seed: seed of the random stream "label_noise".
    """
    generator = stream("label_noise", seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    shift = torch.randint(1, num_classes, chosen.shape, generator=generator)
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + shift) % num_classes
    return noisy


class Rows(Protocol):
    """Anything with a length from which a tensor of row numbers selects a part: a `Split`, or `Files`."""

    def __len__(self) -> int: ...

    def __getitem__(self: "AnyRows", rows: Tensor, /) -> "AnyRows": ...


AnyRows = TypeVar("AnyRows", bound=Rows)


def hold_out(split: AnyRows, n: int, seed: int) -> tuple[AnyRows, AnyRows]:
    """Divide a split into the images to train on and ``n`` random images for validation: (kept, held out).

    Choices such as the best epoch may be made on the held-out images, not on the test set. Both parts keep the order
    of ``split``. ``seed`` is that of the random stream "hold_out".
    """
    order = torch.randperm(len(split), generator=stream("hold_out", seed))
    return split[order[n:].sort().values], split[order[:n].sort().values]
