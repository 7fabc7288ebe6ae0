"""The loader of images in memory: its pixels against plain code for one image, its randomness, its errors."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rst.experiments.data import Loader, Split, evaluation_batches
from rst.experiments.data.augment import Cutout, Mixup
from rst.experiments.data.loader import Crops
from rst.streams import stream

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
IMAGES = torch.randint(0, 256, (70, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(70)
BASIC: dict[str, Any] = {"batch_size": 16, "mean": MEAN, "std": STD, "flip": True, "crop_padding": 4}


def basic(**changes: Any) -> Loader:
    """A loader that flips and crops, with other arguments where they are given."""
    return Loader(IMAGES, LABELS, **{**BASIC, **changes})


def assert_same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> None:
    assert len(first) == len(second)
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


# Pixels --------------------------------------------------------------------------------------------------------------


def test_a_batch_equals_flipping_padding_cropping_and_normalising_one_image_at_a_time() -> None:
    loader = basic(seed=3)
    order = torch.randperm(70, generator=stream("order", 3, 5)).tolist()
    for step, (images, labels) in enumerate(loader.epoch(5)):
        generator = stream("augment", 3, 5, step)
        mirrors, rows, columns = (torch.randint(n, (16,), generator=generator).tolist() for n in (2, 9, 9))
        chosen = order[16 * step : 16 * step + 16]
        assert labels.tolist() == chosen
        for image, index, mirror, row, column in zip(images, chosen, mirrors, rows, columns, strict=True):
            plain = IMAGES[index].numpy()
            plain = plain[:, :, ::-1] if mirror else plain
            plain = np.pad(plain, ((0, 0), (4, 4), (4, 4)), mode="reflect")[:, row : row + 16, column : column + 16]
            plain = (plain / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
            np.testing.assert_allclose(image.numpy(), plain, atol=1e-6)


@settings(max_examples=40)
@given(
    height=st.integers(1, 9), width=st.integers(1, 9), channels=st.integers(1, 3), data=st.data(), flip=st.booleans()
)
def test_every_crop_equals_the_crop_of_torchvision(
    height: int, width: int, channels: int, flip: bool, data: st.DataObject
) -> None:
    padding = data.draw(st.integers(0, min(height, width) - 1))
    images = torch.randint(0, 256, (2, channels, height, width), dtype=torch.uint8)
    crops = Crops(images, flip=flip, padding=padding)
    offsets = 2 * padding + 1
    assert crops.shape == (1 + flip, 2, offsets, offsets)
    for mirror in range(1 + flip):
        padded = tf.pad(tf.hflip(images) if mirror else images, padding, padding_mode="reflect")
        for row in range(offsets):
            for column in range(offsets):
                both = crops.select(torch.tensor([[mirror, n, row, column] for n in (0, 1)]).T)
                assert torch.equal(both, tf.crop(padded, row, column, height, width))


def test_the_crops_take_no_memory_beyond_the_padded_images() -> None:
    crops = Crops(IMAGES, flip=True, padding=4)
    assert crops.rows.untyped_storage().nbytes() == 2 * 70 * 3 * 24 * 24


def test_without_augmentation_the_images_are_only_normalised() -> None:
    images, labels = next(basic(flip=False, crop_padding=0).epoch(0))
    expected = tf.normalize(IMAGES[labels] / 255, MEAN, STD)
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_the_evaluation_batches_hold_all_images_in_order() -> None:
    batches = list(evaluation_batches(Split(IMAGES, LABELS), 32, MEAN, STD, "cpu"))
    assert [len(labels) for _, labels in batches] == [32, 32, 6]
    assert torch.equal(torch.cat([labels for _, labels in batches]), LABELS)
    expected = tf.normalize(IMAGES / 255, MEAN, STD)
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), expected, atol=1e-6, rtol=0)


def test_a_loader_does_not_change_the_images_that_it_is_given() -> None:
    before = IMAGES.clone()
    list(basic(transforms=[Mixup(1.0, 70), Cutout(8)]).epoch(0))
    assert torch.equal(IMAGES, before)


# Distributions -------------------------------------------------------------------------------------------------------


def test_flips_and_crop_offsets_are_uniform_and_independent() -> None:
    image = torch.arange(81, dtype=torch.uint8).reshape(1, 1, 9, 9)
    crops = Crops(image, flip=True, padding=2)
    each = torch.cartesian_prod(*(torch.arange(n) for n in crops.shape))
    view = crops.select(each.T).flatten(0, 1)
    scale = {"mean": (0.0,), "std": (1 / 255,)}
    loader = Loader(
        image.repeat(5000, 1, 1, 1), torch.zeros(5000), batch_size=5000, flip=True, crop_padding=2, seed=1, **scale
    )
    images, _ = next(loader.epoch(0))
    equal = (images.round().flatten(1)[:, None] == view.flatten(1)[None]).all(-1)
    assert (equal.sum(1) == 1).all()
    expected = 5000 / 50
    chi_squared = ((equal.sum(0) - expected) ** 2 / expected).sum()
    assert 20 < chi_squared < 95  # Of 49 degrees of freedom: mean 49, standard deviation 10.


# Order ---------------------------------------------------------------------------------------------------------------


def test_each_epoch_is_a_new_permutation_whose_last_partial_batch_is_dropped() -> None:
    loader = basic()
    epochs = [torch.cat([labels for _, labels in loader.epoch(epoch)]) for epoch in range(3)]
    for labels in epochs:
        assert len(labels) == 64 == 16 * len(loader)
        assert len(labels.unique()) == 64
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_the_batches_depend_on_seed_and_epoch_alone() -> None:
    first = list(basic(seed=1).epoch(2))
    torch.rand(5)
    other = basic(seed=1)
    list(other.epoch(0))
    assert_same(first, list(other.epoch(2)))
    for seed, epoch in ((2, 2), (1, 3)):
        assert not torch.equal(first[0][1], next(basic(seed=seed).epoch(epoch))[1])


def test_loading_draws_nothing_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    list(basic(transforms=[Mixup(0.5, 70), Cutout(8)]).epoch(0))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("step", range(5))
def test_an_epoch_that_starts_at_a_step_continues_as_the_whole_epoch_does(step: int) -> None:
    transforms = [Mixup(1.0, 70), Cutout(8)]
    assert_same(list(basic(transforms=transforms).epoch(1))[step:], list(basic(transforms=transforms).epoch(1, step)))


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("mixup_alpha", [0.0, 1.0])
def test_the_parts_of_all_ranks_make_up_the_batch_that_one_device_sees(per_image: bool, mixup_alpha: float) -> None:
    transforms = [Mixup(mixup_alpha, 70)] * bool(mixup_alpha) + [Cutout(8, per_image)]
    ranks = [list(basic(transforms=transforms, rank=rank, world_size=4).epoch(1)) for rank in range(4)]
    joined = [tuple(torch.cat(part) for part in zip(*step, strict=True)) for step in zip(*ranks, strict=True)]
    assert_same(joined, list(basic(transforms=transforms).epoch(1)))  # type: ignore[arg-type]


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_padding": 16}, r"augmentation\.crop_padding=16 .* write 0 to 15"),
    ],
)
def test_an_error_names_the_key_and_the_value_that_do_not_fit(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        basic(**changes)
