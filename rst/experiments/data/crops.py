"""From an image file to the square of pixels that the network sees, one image at a time."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Generator

from rst.streams import stream


def decode(path: str) -> Image.Image:
    """The image in a file, converted to RGB from whatever mode it has.

    Pillow decodes, because the decoder of torchvision can crash Python on a damaged file.

    Raises:
        ValueError: the file cannot be read or decoded; the sentence names it.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16 bits a pixel: convert() would clip the values to 255, not scale them.
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # Damage shows as an error of many kinds.
        raise ValueError(
            f"{path} cannot be decoded ({error}): copy or download it again; scripts/prepare_data.py finds all such "
            "files."
        ) from error


def crop_box(width: int, height: int, generator: Generator) -> tuple[int, int, int, int]:
    """Draw the box (left, top, right, bottom), in pixels, of a random crop of an image (Szegedy et al., 2015).

    Its area is uniform from 8 to 100 % of the image's, its aspect ratio log-uniform from 3/4 to 4/3 and its place
    uniform. A box that does not fit is drawn again, up to ten times in all; then the box is the largest central one
    with an aspect ratio in that range.
    """
    for area_draw, aspect_draw in torch.rand(10, 2, generator=generator).tolist():
        area, aspect = (0.08 + 0.92 * area_draw) * width * height, (4 / 3) ** (2 * aspect_draw - 1)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(torch.randint(room + 1, (), generator=generator)) for room in (width - w, height - h))
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_crop(image: Image.Image, row: int, *, size: int, flip: bool, seed: int, epoch: int) -> Image.Image:
    """The crop for training: a `crop_box` of the image, resized to a square of ``size`` pixels a side.

    It is mirrored left to right with probability 1/2 if ``flip``. All draws are a function of (seed, epoch, row), where
    ``row`` is the row of the image in its split.
    """
    generator = stream("crop", seed, epoch, row)
    box = crop_box(*image.size, generator)
    crop = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    mirror = flip and torch.rand((), generator=generator) < 0.5
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else crop


def centre_crop(image: Image.Image, row: int, *, size: int) -> Image.Image:
    """The crop for evaluation: the central square of the image whose shorter side is resized to 256/224 of ``size``.

    ``size`` is the side of the crop in pixels. ``row`` is not used; it stands here so that the two crops are called
    alike.
    """
    shorter = round(size * 256 / 224)
    width, height = (shorter * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
