"""Micro-batches: in the body of one loop over passes, or with passes of their own and `advance=False`."""

import pytest
import torch
from textbook import batch, clean_gradient, gradient, loss_on, mixed_gradient, perceptron
from torch import Tensor, nn

import rst
from rst import schedules

RHO = 0.1
X, Y = batch(0, size=12)
MICRO_BATCHES = list(zip(X.chunk(3), Y.chunk(3), strict=True))


def left(model: nn.Module) -> Tensor:
    return gradient(list(model.parameters())).clone()


def step_by_micro_batches(model: nn.Module, method: rst.RST) -> None:
    """One step of three micro-batches, each of which has passes of its own."""
    for index, (x, y) in enumerate(MICRO_BATCHES):
        for weight in method.passes(advance=index == 2):
            (weight * loss_on(model, x, y) / 3).backward()


@pytest.mark.parametrize("schedule", [schedules.never(), schedules.always()], ids=str)
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_micro_batches_in_the_body_give_the_gradient_of_the_whole_batch(schedule, c):
    model = perceptron()
    method = rst.RST(model, RHO, schedule, gamma_ratio=c)
    method.backward(lambda: loss_on(model, X, Y))
    expected = left(model)
    model.zero_grad()
    for weight in method.passes():
        for x, y in MICRO_BATCHES:
            (weight * loss_on(model, x, y) / 3).backward()
    torch.testing.assert_close(left(model), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("c", [1.0, 2.0])
def test_micro_batches_with_passes_of_their_own_are_each_perturbed_by_their_own_gradient(c):
    model = perceptron()
    each = [mixed_gradient(model, lambda x=x, y=y: loss_on(model, x, y) / 3, RHO, c) for x, y in MICRO_BATCHES]
    whole = mixed_gradient(model, lambda: loss_on(model, X, Y), RHO, c)
    model.zero_grad()
    step_by_micro_batches(model, rst.RST(model, RHO, schedules.always(), gamma_ratio=c))
    torch.testing.assert_close(left(model), sum(each), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(left(model), whole, rtol=1e-4)


def test_in_a_plain_step_micro_batches_with_passes_of_their_own_give_the_gradient_of_the_whole_batch():
    model = perceptron()
    expected = clean_gradient(model, lambda: loss_on(model, X, Y))
    model.zero_grad()
    step_by_micro_batches(model, rst.RST(model, RHO, schedules.never()))
    torch.testing.assert_close(left(model), expected, rtol=1e-9, atol=1e-12)


def test_the_micro_batches_of_a_step_share_t_and_its_gate():
    model = perceptron()
    method = rst.RST(model, RHO, schedules.constant(0.5), total_steps=12)
    passes = []
    for _ in range(12):
        for index, (x, y) in enumerate(MICRO_BATCHES):
            count = 0
            for weight in method.passes(advance=index == 2):
                (weight * loss_on(model, x, y)).backward()
                count += 1
            passes.append(count)
    expected = [2 if is_open else 1 for is_open in method.gate for _ in MICRO_BATCHES]
    assert passes == expected
    assert set(passes) == {1, 2}
    assert method.t == 12
