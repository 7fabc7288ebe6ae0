"""The weights, and t, after a step that reached its end, that failed, or that was left before its end."""

from collections.abc import Iterator

import pytest
import torch
from textbook import Network, assert_bitwise, batch, loss_on, state
from torch import Tensor, nn

import rst
from rst import schedules

RHO = 0.1
X, Y = batch(0)


class Failure(Exception):
    """Raised in the body of the loop."""


def sharp(model: nn.Module, **arguments) -> rst.RST:
    return rst.RST(model, RHO, schedules.always(), **arguments)


def weights(model: nn.Module) -> list[tuple[int, Tensor]]:
    """The address of every weight tensor, and a copy of it."""
    return [(p.data_ptr(), p.detach().clone()) for p in model.parameters()]


def enter(passes: Iterator[float], model: nn.Module, number: int) -> None:
    """Advance to the pass with this number: 0 is the clean, 1 the perturbed one, where the weights differ."""
    before = model.conv.weight.detach().clone()
    for _ in range(number):
        (next(passes) * loss_on(model, X, Y)).backward()
    next(passes)
    assert torch.equal(before, model.conv.weight) == (number == 0)


in_either_pass = pytest.mark.parametrize("number", [0, 1], ids=["clean", "perturbed"])


def test_after_a_step_every_weight_has_its_value_and_its_address_from_before():
    model = Network()
    before = weights(model)
    sharp(model).backward(lambda: loss_on(model, X, Y))
    assert_bitwise(weights(model), before)


@in_either_pass
def test_an_error_in_the_body_restores_the_weights_even_while_its_traceback_is_held(number):
    model = Network()
    method, before = sharp(model), weights(model)
    with pytest.raises(Failure) as held:  # noqa: PT012
        for index, weight in enumerate(method.passes()):
            if index == number:
                raise Failure
            (weight * loss_on(model, X, Y)).backward()
    assert held.tb is not None
    assert_bitwise(weights(model), before)
    assert method.t == 0


@in_either_pass
def test_an_error_in_the_closure_restores_the_weights(number):
    model = Network()
    method, before, calls = sharp(model), weights(model), []

    def closure() -> Tensor:
        calls.append(None)
        if len(calls) > number:
            raise Failure
        return loss_on(model, X, Y)

    with pytest.raises(Failure):
        method.backward(closure)
    assert_bitwise(weights(model), before)
    assert method.t == 0


CALLS = {
    "passes": lambda method: method.passes(),
    "state_dict": lambda method: method.state_dict(),
    "load_state_dict": lambda method: method.load_state_dict(sharp(Network()).state_dict()),
    "restore": lambda method: method.restore(),
}


@pytest.mark.parametrize("call", CALLS)
@in_either_pass
def test_a_pass_that_was_left_open_is_ended_by_the_next_call_of(call, number):
    """As when a variable or a notebook still holds the iterator."""
    model = Network()
    method, before = sharp(model), weights(model)
    left_open = method.passes()
    enter(left_open, model, number)
    CALLS[call](method)
    assert_bitwise(weights(model), before)
    assert method.t == 0
    assert next(left_open, "ended") == "ended"


@in_either_pass
def test_a_step_that_was_left_can_be_run_again_and_its_old_iterator_does_nothing(number):
    def step(model: nn.Module, method: rst.RST) -> dict:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(1)
        method.backward(lambda: loss_on(model, X, Y))
        optimizer.step()
        return state(model, optimizer)

    model, interrupted = Network(), Network()
    expected = step(model, sharp(model))
    method = sharp(interrupted)
    left_open = method.passes()
    enter(left_open, interrupted, number)
    method.restore()
    interrupted.load_state_dict(Network().state_dict())  # the clean pass has updated BatchNorm's buffers
    interrupted.zero_grad()
    actual = step(interrupted, method)
    assert list(left_open) == []
    assert_bitwise(actual, expected)
    assert method.t == 1


@in_either_pass
def test_a_break_restores_the_weights_and_does_not_advance_t(number):
    model = Network()
    method, before = sharp(model), weights(model)
    for index, weight in enumerate(method.passes()):
        (weight * loss_on(model, X, Y)).backward()
        if index == number:
            break
    assert_bitwise(weights(model), before)
    assert method.t == 0


def test_an_error_in_the_perturbed_pass_restores_buffers_and_random_numbers():
    model, plain = Network(), Network()
    torch.manual_seed(1)
    loss_on(plain, X, Y)
    expected = (plain.state_dict(), torch.get_rng_state())
    torch.manual_seed(1)
    with pytest.raises(Failure):  # noqa: PT012
        for weight in sharp(model, gamma_ratio=2.0).passes():
            (weight * loss_on(model, X, Y)).backward()
            if weight == 2.0:
                raise Failure
    assert_bitwise((model.state_dict(), torch.get_rng_state()), expected)


def test_a_clean_pass_without_a_backward_is_refused():
    model = Network()
    method, before = sharp(model), weights(model)
    with pytest.raises(RuntimeError, match="backward"):  # noqa: PT012
        for _ in method.passes():
            loss_on(model, X, Y)
    assert_bitwise(weights(model), before)
