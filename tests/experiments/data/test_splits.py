"""Splits in memory: their order, their digest, label noise and held-out images."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_cifar import EXPECTED, TRAIN

from rst.experiments.data import Dataset, Split, hold_out, with_label_noise
from rst.experiments.data.splits import canonical


def test_the_canonical_order_puts_equal_images_in_the_order_of_their_labels() -> None:
    images = TRAIN.images[:1].repeat(3, 1, 1, 1)
    assert canonical(Split(images, torch.tensor([7, 2, 5]))).labels.tolist() == [2, 5, 7]


def test_the_digest_depends_on_every_pixel_and_every_label() -> None:
    images = EXPECTED.test.images.clone()
    images[-1, -1, -1, -1] ^= 1
    labels = EXPECTED.test.labels.clone()
    labels[-1] += 1
    changed = [Split(images, EXPECTED.test.labels), Split(EXPECTED.test.images, labels)]
    assert len({EXPECTED.digest, *(Dataset(EXPECTED.train, split).digest for split in changed)}) == 3


@given(
    labels=st.lists(st.integers(0, 4), max_size=60),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    extra=st.integers(0, 3),
)
def test_label_noise_changes_exactly_its_fraction_and_always_to_another_class(
    labels: list[int], fraction: float, seed: int, extra: int
) -> None:
    before = torch.tensor(labels, dtype=torch.int64)
    after = with_label_noise(before, fraction, 5 + extra, seed)
    assert int((before != after).sum()) == round(fraction * len(labels))
    assert before.tolist() == labels
    assert all(0 <= label < 5 + extra for label in after.tolist())
    assert torch.equal(after, with_label_noise(before, fraction, 5 + extra, seed))


def test_label_noise_is_uniform_over_the_other_classes_and_depends_on_the_seed() -> None:
    before = torch.full((9000,), 3)
    after = with_label_noise(before, 1.0, 10, seed=0)
    counts = torch.bincount(after, minlength=10).float()
    assert counts[3] == 0
    assert ((counts - 1000).abs()[torch.arange(10) != 3] < 150).all()
    assert not torch.equal(after, with_label_noise(before, 1.0, 10, seed=1))


@given(n=st.integers(0, 49), seed=st.integers(0, 2**31))
def test_the_kept_and_the_held_out_images_are_disjoint_and_complete(n: int, seed: int) -> None:
    numbered = Split(torch.arange(50)[:, None, None, None], torch.arange(50))
    kept, held = hold_out(numbered, n, seed)
    assert len(held) == n
    assert sorted([*kept.labels.tolist(), *held.labels.tolist()]) == list(range(50))
    assert torch.equal(held.images.flatten(), held.labels)
    assert torch.equal(hold_out(numbered, n, seed)[1].labels, held.labels)
