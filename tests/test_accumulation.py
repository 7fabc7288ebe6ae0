"""Micro-batches: inside the body of the loop, and outside it with `advance=False`."""

import pytest
import torch
from textbook import assert_bitwise, batch, clean_gradient, gradient, loss_on, mixed_gradient, perceptron
from torch import Tensor, nn

import rst
from rst import schedules

RHO = 0.1
X, Y = batch(0, size=12)
MICRO_BATCHES = list(zip(X.chunk(3), Y.chunk(3), strict=True))


def left(model: nn.Module) -> Tensor:
    return gradient(list(model.parameters())).clone()


def run_outside(model: nn.Module, method: rst.RST) -> None:
    """One step whose three micro-batches each have passes of their own."""
    for index, (x, y) in enumerate(MICRO_BATCHES):
        for weight in method.passes(advance=index == 2):
            (weight * loss_on(model, x, y) / 3).backward()


@pytest.mark.parametrize("schedule", [schedules.never(), schedules.always()], ids=str)
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_micro_batches_inside_the_body_are_one_large_batch(schedule, c):
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
def test_micro_batches_outside_are_each_perturbed_by_their_own_gradient(c):
    model = perceptron()
    each = [mixed_gradient(model, lambda x=x, y=y: loss_on(model, x, y) / 3, RHO, c) for x, y in MICRO_BATCHES]
    whole = mixed_gradient(model, lambda: loss_on(model, X, Y), RHO, c)
    model.zero_grad()
    run_outside(model, rst.RST(model, RHO, schedules.always(), gamma_ratio=c))
    torch.testing.assert_close(left(model), sum(each), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(left(model), whole, rtol=1e-4)


def test_micro_batches_outside_of_a_closed_gate_are_one_large_batch():
    model = perceptron()
    expected = clean_gradient(model, lambda: loss_on(model, X, Y))
    model.zero_grad()
    run_outside(model, rst.RST(model, RHO, schedules.never()))
    torch.testing.assert_close(left(model), expected, rtol=1e-9, atol=1e-12)


def test_micro_batches_of_one_step_share_t_and_its_gate():
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


@pytest.mark.parametrize("schedule", [schedules.never(), schedules.always()], ids=str)
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_a_gradient_that_was_there_before_is_added_to_and_takes_no_part_in_the_perturbation(schedule, c):
    model = perceptron()
    method = rst.RST(model, RHO, schedule, gamma_ratio=c)
    method.backward(lambda: loss_on(model, X, Y))
    expected = left(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    method.backward(lambda: loss_on(model, X, Y))
    torch.testing.assert_close(left(model), expected + 3.0, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_gradient_that_was_there_before_survives_a_double_backward():
    """``create_graph=True`` makes autograd put a new tensor into `.grad` instead of adding to the one that is there."""
    model = perceptron()
    method = rst.RST(model, RHO, schedules.always(), gamma_ratio=2.0)
    method.backward(lambda: loss_on(model, X, Y))
    expected = left(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    for weight in method.passes():
        (weight * loss_on(model, X, Y)).backward(create_graph=weight == 1.0)
    torch.testing.assert_close(left(model), expected + 3.0, rtol=1e-9, atol=1e-12)


def test_zeroing_gradients_in_place_is_the_same_as_dropping_them():
    def train(set_to_none: bool) -> Tensor:
        model = perceptron()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        method = rst.RST(model, RHO, schedules.always(), gamma_ratio=2.0)
        for _ in range(4):
            method.backward(lambda: loss_on(model, X, Y))
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    assert_bitwise(train(set_to_none=False), train(set_to_none=True))
