"""Images in memory on the training device, augmented there as whole batches."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rst.data.augment import BatchTransform, to_device
from rst.data.splits import Split
from rst.streams import stream


class Loader:
    """Training batches in which every flip, reflect-padded crop and selection of images is one gather.

    ``images`` are uint8 ``[N, C, H, W]``, ``labels`` int64 ``[N]``, ``mean`` and ``std`` those of each channel on the
    scale [0, 1]; ``batch_size`` counts all ranks' images. The padded images (and their mirror images, if ``flip``) stay
    on ``device`` as uint8. The order is a function of (seed, epoch), the augmentation of (seed, epoch, step), neither
    of the device or the number of ranks: a rank takes its slice of the batch that one device would see.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        flip: bool = False,
        crop_padding: int = 0,
        transforms: Sequence[BatchTransform] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.share = share_of_batch(batch_size, len(images), rank, world_size)
        size = min(images.shape[2:])
        if not 0 <= crop_padding < size:
            raise ValueError(
                f"augmentation.crop_padding={crop_padding} does not fit images of {size} pixels: write 0 to {size - 1}."
            )
        self.batch_size, self.seed, self.transforms = batch_size, seed, tuple(transforms)
        self.labels = labels.to(device)
        self.crops = crop_view(images.to(device), flip=flip, padding=crop_padding)
        self.scale, self.shift = normalisation(mean, std, self.labels.device)

    def __len__(self) -> int:
        """Steps an epoch; the last partial batch is dropped."""
        return len(self.labels) // self.batch_size

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``first_step``, ``first_step + 1``, ... of an epoch: float32 ``[B, C, H, W]`` and labels ``[B]``.

        The labels are int64, or soft targets ``[B, num_classes]`` under mixup.
        """
        order = order_of_epoch(len(self.labels), self.seed, epoch)
        for step in range(first_step, len(self)):
            yield self._batch(epoch, step, order[step * self.batch_size : (step + 1) * self.batch_size])

    def _batch(self, epoch: int, step: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        generator = stream("augment", self.seed, epoch, step)
        mirrors, _, rows, columns = self.crops.shape[:4]
        mirror, row, column = (torch.randint(n, chosen.shape, generator=generator) for n in (mirrors, rows, columns))
        mirror, chosen, row, column = to_device(torch.stack([mirror, chosen, row, column]), self.labels.device)
        images = normalised(self.crops[mirror, chosen, row, column], self.scale, self.shift)
        labels = self.labels[chosen]
        # The whole batch is made on every rank, because mixup pairs images across ranks.
        for transform in self.transforms:
            images, labels = transform(images, labels, generator)
        return images[self.share], labels[self.share]


def order_of_epoch(images: int, seed: int, epoch: int) -> Tensor:
    """The rows of the training images as an epoch shows them: int64 [images]."""
    return torch.randperm(images, generator=stream("order", seed, epoch))


def share_of_batch(batch_size: int, images: int, rank: int, world_size: int) -> slice:
    """The rows of a batch that are a rank's; ValueError where there are not enough images or no equal shares."""
    if not 1 <= batch_size <= images:
        raise ValueError(
            f"recipe.batch_size={batch_size} does not fit {images} training images: "
            f"write 1 to {images}, or a larger dataset.train_images."
        )
    if batch_size % world_size:
        raise ValueError(
            f"recipe.batch_size={batch_size} does not split over {world_size} devices: "
            f"write a multiple of {world_size}."
        )
    share = batch_size // world_size
    return slice(rank * share, (rank + 1) * share)


def evaluation_batches(
    split: Split, batch_size: int, mean: Sequence[float], std: Sequence[float], device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images of ``split`` in order and unaugmented, as `Loader` normalises them; the last batch may be smaller.

    A split that is on ``device`` already is not copied.
    """
    scale, shift = normalisation(mean, std, device)
    for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
        yield normalised(images.to(device), scale, shift), labels.to(device)


def crop_view(images: Tensor, *, flip: bool, padding: int) -> Tensor:
    """Every flip and crop of the reflect-padded ``images`` as one view ``[1 or 2, N, rows, columns, C, H, W]``.

    ``view[mirror, n, row, column]`` is image n, flipped left to right if ``mirror`` is 1, padded, and cropped back to
    its size at (row, column), each from 0 to 2 * ``padding``. Reflection does not repeat the edge pixel.
    """
    count, channels, height, width = images.shape
    padded = images.new_empty(1 + flip, count, channels, height + 2 * padding, width + 2 * padding)
    inner = padded[..., padding : padding + height, padding : padding + width]
    inner[0] = images
    if flip:
        inner[1] = images.flip(-1)
    for dim, length in ((-2, height), (-1, width)):
        before, after = padded.narrow(dim, padding + 1, padding), padded.narrow(dim, length - 1, padding)
        padded.narrow(dim, 0, padding).copy_(before.flip(dim))
        padded.narrow(dim, padding + length, padding).copy_(after.flip(dim))
    return padded.unfold(3, height, 1).unfold(4, width, 1).permute(0, 1, 3, 4, 2, 5, 6)


def normalisation(mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(scale, shift), each ``[C, 1, 1]``, such that (x / 255 - mean) / std = scale * x + shift."""
    centre, spread = torch.tensor([mean, std], dtype=torch.float64)[..., None, None]
    return (1 / (255 * spread)).float().to(device), (-centre / spread).float().to(device)


def normalised(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Uint8 images as normalised float32."""
    return images.float().mul_(scale).add_(shift)
