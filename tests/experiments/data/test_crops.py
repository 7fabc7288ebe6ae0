"""Decoding and cropping one image, against Pillow and torchvision."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp, kstest
from sklearn.datasets import load_sample_images
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as tf

from rst.experiments.data.crops import centre_crop, crop_box, decode
from rst.streams import stream

# Decoding -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("1", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("P", "GIF")])
def test_every_mode_becomes_rgb_as_pillow_converts_it(tmp_path: Path, mode: str, kind: str) -> None:
    photograph = Image.fromarray(load_sample_images().images[1]).crop((200, 100, 260, 150))
    path = tmp_path / "image.JPEG"
    photograph.convert(mode).save(path, kind)
    image = decode(str(path))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(path).convert("RGB")))


def test_a_cmyk_photograph_keeps_its_colours(tmp_path: Path) -> None:
    photograph = Image.fromarray(load_sample_images().images[1]).crop((200, 100, 260, 150))
    photograph.convert("CMYK").save(tmp_path / "image.JPEG", quality=95)
    difference = np.asarray(decode(str(tmp_path / "image.JPEG")), dtype=float) - np.asarray(photograph, dtype=float)
    assert np.abs(difference).mean() < 4


def test_pixels_of_16_bits_are_scaled_to_8_and_not_clipped(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey * 257).save(tmp_path / "image.JPEG", "PNG")
    image = np.asarray(decode(str(tmp_path / "image.JPEG")))
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2))


# The random crop of training ------------------------------------------------------------------------------------------


def boxes(width: int, height: int, count: int = 2000) -> np.ndarray:
    """Random boxes in an image of this size: [count, 4] of (left, top, right, bottom)."""
    return np.array([crop_box(width, height, stream("crop", index)) for index in range(count)])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (300, 300), (1000, 400)])
def test_crop_boxes_have_the_distribution_of_those_of_torchvision(width: int, height: int) -> None:
    left, top, right, bottom = boxes(width, height).T
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    expected = np.array([RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(2000)])
    assert ((left >= 0) & (top >= 0) & (right <= width) & (bottom <= height)).all()
    for found, reference in zip((top, left, bottom - top, right - left), expected.T, strict=True):
        assert ks_2samp(found, reference).pvalue > 1e-3


def test_crop_boxes_have_uniform_areas_and_log_uniform_aspect_ratios_in_range() -> None:
    left, top, right, bottom = boxes(600, 600, 4000).T
    area, aspect = (right - left) * (bottom - top) / 600**2, (right - left) / (bottom - top)
    assert 0.079 < area.min() < 0.09
    assert 0.97 < area.max() <= 1
    assert 0.745 < aspect.min() < 0.76
    assert 1.31 < aspect.max() < 1.342
    small = area < 0.5  # Boxes of less than half the image always fit, so that none of them is drawn again.
    assert kstest((area[small] - 0.08) / 0.42, "uniform").pvalue > 1e-3
    assert kstest((np.log(aspect[small]) / math.log(4 / 3) + 1) / 2, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("width", "height", "box"), [(1000, 1, (499, 0, 500, 1)), (1000, 30, (480, 0, 520, 30)), (3, 90, (0, 43, 3, 47))]
)
def test_the_crop_box_of_an_image_too_long_for_any_draw_is_its_centre(
    width: int, height: int, box: tuple[int, int, int, int]
) -> None:
    assert {tuple(found) for found in boxes(width, height, 20).tolist()} == {box}


# The central crop of evaluation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(500, 375), (375, 501), (333, 500), (256, 256), (257, 300), (40, 1000)])
def test_the_central_crop_of_224_pixels_equals_that_of_torchvision(size: tuple[int, int]) -> None:
    photograph = Image.fromarray(load_sample_images().images[0]).resize(size)
    expected = tf.center_crop(tf.resize(photograph, [256], v2.InterpolationMode.BICUBIC), [224])
    np.testing.assert_array_equal(np.asarray(centre_crop(photograph, 0, size=224)), np.asarray(expected))
