"""Images in memory on the training device, augmented there as whole batches."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rst.experiments.data.augment import BatchTransform, to_device
from rst.experiments.data.splits import Split
from rst.streams import stream


class Loader:
    """Training batches of images in memory. Selecting, flipping and cropping a batch is a single copy.

    The order of the images is a function of (seed, epoch) and the augmentation one of (seed, epoch, step). Neither
    depends on the device or on the number of ranks: a rank takes its rows of the batch that one device would see. The
    reflect-padded images, and their mirror images if ``flip``, stay on ``device`` as uint8.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        batch_size: images in a step of all ranks together.
        mean: mean of each channel, of pixels from 0 to 1.
        std: standard deviation of each channel, of pixels from 0 to 1.
        flip: mirror each image left to right with probability 1/2.
        crop_padding: width of the reflect padding in pixels, from 0 to one less than the side of the images.
        transforms: applied in this order to the normalised batch of all ranks.
        seed: seed of the random streams "order" and "augment".
        device: where the images are kept and the batches are made.
        rank: number of this rank, from 0.
        world_size: number of ranks.

    Raises:
        ValueError: ``crop_padding`` does not fit the images.
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
        self.share = share_of_batch(batch_size, rank, world_size)
        size = min(images.shape[2:])
        if not 0 <= crop_padding < size:
            raise ValueError(
                f"augmentation.crop_padding={crop_padding} does not fit images of {size} pixels: write 0 to {size - 1}."
            )
        self.batch_size, self.seed, self.transforms = batch_size, seed, tuple(transforms)
        self.labels = labels.to(device)
        self.crops = Crops(images.to(device), flip=flip, padding=crop_padding)
        self.scale, self.shift = normalisation(mean, std, self.labels.device)

    def __len__(self) -> int:
        """Steps in an epoch. The last partial batch is dropped."""
        return len(self.labels) // self.batch_size

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from ``first_step`` on: normalised images, float32 [B, C, H, W], and labels.

        B is this rank's part of ``batch_size``. The labels are int64 [B], or soft targets [B, num_classes] with mixup.
        """
        order = order_of_epoch(len(self.labels), self.seed, epoch)
        for step in range(first_step, len(self)):
            yield self._batch(epoch, step, order[step * self.batch_size : (step + 1) * self.batch_size])

    def _batch(self, epoch: int, step: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        generator = stream("augment", self.seed, epoch, step)
        mirrors, _, rows, columns = self.crops.shape
        mirror, row, column = (torch.randint(n, chosen.shape, generator=generator) for n in (mirrors, rows, columns))
        which = to_device(torch.stack([mirror, chosen, row, column]), self.labels.device)
        images = normalised(self.crops.select(which), self.scale, self.shift)
        labels = self.labels[which[1]]
        # Every rank makes the whole batch, because mixup pairs images of different ranks.
        for transform in self.transforms:
            images, labels = transform(images, labels, generator)
        return images[self.share], labels[self.share]


class Crops:
    """Every flip and crop of images, reflect-padded: [1 + flip, N, rows, columns], each of them [C, H, W].

    Crop (mirror, n, row, column) is image n, mirrored left to right if ``mirror`` is 1, padded by ``padding`` pixels on
    each side, and cropped back to [H, W] from (row, column) on, each from 0 to 2 * ``padding``. The reflection does not
    repeat the pixels at the edge.

    Args:
        images: uint8 [N, C, H, W].
        flip: whether mirror images are there too.
        padding: width of the padding in pixels, from 0 to one less than H and W.
    """

    def __init__(self, images: Tensor, *, flip: bool, padding: int) -> None:
        count, channels, height, width = self.size = images.shape
        padded = images.new_empty(1 + flip, count, channels, height + 2 * padding, width + 2 * padding)
        inner = padded[..., padding : padding + height, padding : padding + width]
        inner[0] = images
        if flip:
            inner[1] = images.flip(-1)
        for dim, length in ((-2, height), (-1, width)):
            before, after = padded.narrow(dim, padding + 1, padding), padded.narrow(dim, length - 1, padding)
            padded.narrow(dim, 0, padding).copy_(before.flip(dim))
            padded.narrow(dim, padding + length, padding).copy_(after.flip(dim))
        self.shape = (1 + flip, count, 2 * padding + 1, 2 * padding + 1)
        self.strides = torch.tensor([*padded.stride()[:2], *padded.stride()[-2:]], device=images.device)[:, None]
        starts = torch.arange(channels, device=images.device)[:, None] * padded.stride(2)
        self.starts = (starts + torch.arange(height, device=images.device) * padded.stride(3)).flatten()
        # A row of a crop may begin at any pixel. Copying whole rows takes an eighth of the time of an index for each
        # pixel.
        self.rows = padded.as_strided((padded.numel() - width + 1, width), (1, 1))

    def select(self, which: Tensor) -> Tensor:
        """The crops whose (mirror, n, row, column) are the columns of ``which``, int64 [4, B]: uint8 [B, C, H, W]."""
        first = (which * self.strides).sum(0)
        return self.rows.index_select(0, (first[:, None] + self.starts).flatten()).view(-1, *self.size[1:])


def order_of_epoch(images: int, seed: int, epoch: int) -> Tensor:
    """The rows of ``images`` training images in the order in which an epoch shows them: int64 [images]."""
    return torch.randperm(images, generator=stream("order", seed, epoch))


def share_of_batch(batch_size: int, rank: int, world_size: int) -> slice:
    """The rows of a batch that belong to a rank."""
    share = batch_size // world_size
    return slice(rank * share, (rank + 1) * share)


def evaluation_batches(
    split: Split, batch_size: int, mean: Sequence[float], std: Sequence[float], device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images of a split in order, normalised as by `Loader` but not augmented; the last batch may be smaller.

    Yields images, float32 [B, C, H, W], and labels, int64 [B], on ``device``. A split that is there already is not
    copied.
    """
    scale, shift = normalisation(mean, std, device)
    for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
        yield normalised(images.to(device), scale, shift), labels.to(device)


def normalisation(mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(scale, shift), each float32 [C, 1, 1], such that scale * x + shift = (x / 255 - mean) / std for a pixel x."""
    centre, spread = torch.tensor([mean, std], dtype=torch.float64)[..., None, None]
    return (1 / (255 * spread)).float().to(device), (-centre / spread).float().to(device)


def normalised(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Uint8 images [B, C, H, W] as normalised float32, by the two tensors of `normalisation`."""
    return images.float().mul_(scale).add_(shift)
