"""Cutout and mixup: what they do to a batch, and the distributions that they draw from."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from rst.experiments.compose import compose
from rst.experiments.data.augment import Cutout, Mixup, transforms
from rst.experiments.keys import Augmentation
from rst.streams import stream

IMAGES = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 10


def augmentation(**keys: Any) -> Augmentation:
    """None, but for these keys."""
    return compose(["augmentation=none"]).augmentation.model_copy(update=keys)


def holes(size: int, count: int, per_image: bool, length: int = 32) -> torch.Tensor:
    """Which pixels each of ``count`` holes covers: bool [count, length, length]."""
    images = torch.ones(count, 2, length, length) if per_image else torch.ones(1, 2, length, length)
    cutout = Cutout(size, per_image)
    if per_image:
        batch = cutout(images, LABELS, stream("test", 0))[0]
    else:
        generator = stream("test", 0)
        batch = torch.cat([cutout(images.clone(), LABELS, generator)[0] for _ in range(count)])
    assert torch.equal(batch[:, 0], batch[:, 1])
    return batch[:, 0] == 0


def test_cutout_of_one_hole_a_batch_cuts_the_same_hole_out_of_every_image() -> None:
    images, labels = Cutout(16)(IMAGES.clone(), LABELS, stream("test", 0))
    hole = images[0, 0] == 0
    assert 0 < hole.sum() <= 16 * 16
    assert (images[:, :, hole] == 0).all()
    assert torch.equal(images[:, :, ~hole], IMAGES[:, :, ~hole])
    assert labels is LABELS


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_the_centre_of_a_hole_is_uniform_and_the_border_cuts_the_hole_off(size: int, per_image: bool) -> None:
    drawn = holes(size, 3000, per_image)
    expected = torch.zeros(32)
    extents = torch.zeros(32, 32)
    for centre in range(32):
        covered = torch.arange(max(0, centre - size // 2), min(32, centre - size // 2 + size))
        expected[covered] += 1 / 32
        extents[len(covered) - 1] += 1 / 32
    for other in (1, 2):
        line = drawn.any(other)
        assert (line.float().mean(0) - expected).abs().max() < 0.05
        lengths = torch.bincount(line.sum(1), minlength=33)[1:] / 3000
        assert (lengths - extents[:, 0]).abs().max() < 0.05
        edges = line.float().diff(dim=1).abs().sum(1)
        assert (edges <= 2).all()  # The covered pixels are one interval.
    rows, columns = drawn.any(2), drawn.any(1)
    assert torch.equal(drawn, rows[:, :, None] & columns[:, None, :])
    correlation = torch.corrcoef(torch.stack([rows.float().argmax(1).float(), columns.float().argmax(1).float()]))[0, 1]
    assert correlation.abs() < 0.08


def test_cutout_of_one_hole_an_image_cuts_different_holes() -> None:
    images, _ = Cutout(8, per_image=True)(torch.ones(12, 1, 32, 32), LABELS, stream("test", 0))
    assert len(images.flatten(1).unique(dim=0)) > 6


def test_mixup_mixes_the_batch_with_the_reversed_batch() -> None:
    images, targets = Mixup(1.0, 10)(IMAGES.clone(), LABELS, stream("test", 0))
    weight = targets[0, 0].item()
    assert 0.5 <= weight <= 1
    torch.testing.assert_close(images, weight * IMAGES + (1 - weight) * IMAGES.flip(0))
    hard = one_hot(LABELS, 10).float()
    torch.testing.assert_close(targets, weight * hard + (1 - weight) * hard.flip(0))


def test_the_loss_on_the_targets_of_mixup_is_the_weighted_mean_of_the_two_losses() -> None:
    logits = torch.randn(12, 10)
    _, targets = Mixup(1.0, 10)(IMAGES.clone(), LABELS, stream("test", 1))
    weight = targets[0, 0].item()
    expected = weight * cross_entropy(logits, LABELS) + (1 - weight) * cross_entropy(logits, LABELS.flip(0))
    torch.testing.assert_close(cross_entropy(logits, targets), expected)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_weight_of_mixup_is_the_larger_of_a_beta_draw_and_its_complement(alpha: float) -> None:
    mixup, generator = Mixup(alpha, 2), stream("test", 0)
    image, labels = torch.zeros(2, 1, 1, 1), torch.tensor([0, 1])
    weights = torch.tensor([mixup(image, labels, generator)[1][0, 0].item() for _ in range(4000)])
    draws = torch.distributions.Beta(alpha, alpha)
    torch.manual_seed(0)
    expected = draws.sample((40000,))
    expected = torch.maximum(expected, 1 - expected)
    assert weights.min() >= 0.5
    levels = torch.linspace(0.1, 0.9, 9)
    assert (weights.quantile(levels) - expected.quantile(levels)).abs().max() < 0.02


@pytest.mark.parametrize("transform", [Cutout(8), Cutout(8, per_image=True), Mixup(1.0, 10)])
def test_a_transform_depends_on_its_generator_alone(transform: Any) -> None:
    results = [transform(IMAGES.clone(), LABELS, stream("test", seed))[0] for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_transforms_are_those_that_are_switched_on_with_mixup_first() -> None:
    assert transforms(augmentation(flip=True, crop_padding=4), 32, 10) == []
    everything = transforms(augmentation(cutout=16, cutout_per_image=True, mixup_alpha=1.0), 32, 100)
    assert everything == [Mixup(1.0, 100), Cutout(16, per_image=True)]


def test_a_hole_larger_than_the_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"augmentation\.cutout=16 .* write 0 \(off\) to 8"):
        transforms(augmentation(cutout=16), 8, 10)
