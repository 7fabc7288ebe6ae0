"""What a step leaves behind: weights, buffers, random numbers and t, also where its loop does not reach the end."""

from collections.abc import Iterator

import pytest
import torch
from textbook import Network, assert_bitwise, batch, loss_on, state
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rst
from rst import schedules

RHO = 0.1
X, Y = batch(0)


class Failure(Exception):
    """Raised in the body of the loop."""


def sharp(model: nn.Module, **arguments) -> rst.RST:
    return rst.RST(model, RHO, schedules.always(), **arguments)


def weights(model: nn.Module) -> list[tuple[int, Tensor]]:
    """Where the weights lie, and a copy of them."""
    return [(p.data_ptr(), p.detach().clone()) for p in model.parameters()]


def enter(passes: Iterator[float], model: nn.Module, number: int) -> None:
    """Advance to the pass of that number, 0 or 1, and check that the weights are perturbed in the second."""
    before = model.conv.weight.detach().clone()
    for _ in range(number):
        (next(passes) * loss_on(model, X, Y)).backward()
    next(passes)
    assert torch.equal(before, model.conv.weight) == (number == 0)


# ----------------------------------------------------------------------------------------------------- the weights


def test_a_step_leaves_every_weight_where_and_what_it_was():
    model = Network()
    before = weights(model)
    sharp(model).backward(lambda: loss_on(model, X, Y))
    assert_bitwise(weights(model), before)


@pytest.mark.parametrize("failing", [0, 1], ids=["clean", "perturbed"])
def test_an_exception_in_a_pass_restores_the_weights_even_while_its_traceback_is_held(failing):
    model = Network()
    method, before = sharp(model), weights(model)
    with pytest.raises(Failure) as held:  # noqa: PT012
        for number, weight in enumerate(method.passes()):
            if number == failing:
                raise Failure
            (weight * loss_on(model, X, Y)).backward()
    assert held.tb is not None
    assert_bitwise(weights(model), before)
    assert method.t == 0


@pytest.mark.parametrize("failing", [0, 1], ids=["clean", "perturbed"])
def test_an_exception_in_the_closure_restores_the_weights(failing):
    model = Network()
    method, before, calls = sharp(model), weights(model), []

    def closure():
        calls.append(None)
        if len(calls) > failing:
            raise Failure
        return loss_on(model, X, Y)

    with pytest.raises(Failure):
        method.backward(closure)
    assert_bitwise(weights(model), before)
    assert method.t == 0


MEND = {
    "passes": lambda method: method.passes(),
    "state_dict": lambda method: method.state_dict(),
    "load_state_dict": lambda method: method.load_state_dict({"t": 0}),
    "restore": lambda method: method.restore(),
}


@pytest.mark.parametrize("mend", MEND)
@pytest.mark.parametrize("number", [0, 1], ids=["clean", "perturbed"])
def test_an_open_pass_that_is_left_behind_is_taken_back_by(mend, number):
    """As when a variable or a notebook holds the iterator."""
    model = Network()
    method, before = sharp(model), weights(model)
    left_behind = method.passes()
    enter(left_behind, model, number)
    MEND[mend](method)
    assert_bitwise(weights(model), before)
    assert method.t == 0
    assert next(left_behind, "ended") == "ended"


@pytest.mark.parametrize("number", [0, 1], ids=["clean", "perturbed"])
def test_the_step_that_was_left_can_be_run_again_and_resuming_the_old_iterator_does_no_harm(number):
    def step(model: nn.Module, method: rst.RST) -> dict:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(1)
        method.backward(lambda: loss_on(model, X, Y))
        optimizer.step()
        return state(model, optimizer)

    model, interrupted = Network(), Network()
    expected = step(model, sharp(model))
    method = sharp(interrupted)
    left_behind = method.passes()
    enter(left_behind, interrupted, number)
    method.restore()
    interrupted.load_state_dict(Network().state_dict())  # a clean pass moves BatchNorm's buffers, as a plain one does
    interrupted.zero_grad()
    actual = step(interrupted, method)
    assert list(left_behind) == []
    assert_bitwise(actual, expected)
    assert method.t == 1


@pytest.mark.parametrize("number", [0, 1], ids=["clean", "perturbed"])
def test_a_break_restores_the_weights_and_leaves_the_step_to_be_done(number):
    model = Network()
    method, before = sharp(model), weights(model)
    for index, weight in enumerate(method.passes()):
        (weight * loss_on(model, X, Y)).backward()
        if index == number:
            break
    assert_bitwise(weights(model), before)
    assert method.t == 0


def test_a_failing_perturbed_pass_puts_buffers_and_random_numbers_back():
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


class NewMemory(TorchDispatchMode):
    """Counts the bytes of every tensor made inside, whether or not it is freed again."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = (t.untyped_storage() for t in tree_leaves(result) if isinstance(t, Tensor))
        self.nbytes += sum(storage.nbytes() for storage in made if storage.data_ptr() not in given)
        return result


def test_going_from_the_clean_to_the_perturbed_pass_and_back_makes_one_copy_of_the_weights_and_nothing_else_of_size():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4000), nn.Linear(4000, 4))
    passes = sharp(model, gamma_ratio=2.0).passes()
    (next(passes) * loss_on(model, X, Y)).backward()
    with NewMemory() as forth:
        weight = next(passes)
    (weight * loss_on(model, X, Y)).backward()
    with NewMemory() as back:
        assert next(passes, None) is None
    size = sum(p.nbytes for p in model.parameters())
    assert size <= forth.nbytes < 1.05 * size
    assert back.nbytes < 0.05 * size


# ----------------------------------------------------------------------------------------------------- the buffers


class Decaying(nn.Module):
    """Rebinds its buffer in every forward pass, and counts the passes in a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("absent", None)
        self.register_buffer("unsaved", torch.zeros(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.scale = self.scale * 0.9
        self.calls += 1
        self.unsaved.add_(x.detach().mean(0))
        return x * self.scale


BUFFERED = {
    "BatchNorm": lambda: nn.BatchNorm1d(4),
    "BatchNorm, cumulative": lambda: nn.BatchNorm1d(4, momentum=None),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
    "InstanceNorm": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    ),
    "spectral norm, hook": lambda: torch.nn.utils.spectral_norm(nn.Linear(4, 4)),
    "spectral norm, parametrization": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "a user's own": Decaying,
}


@pytest.mark.parametrize("name", BUFFERED)
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*")
def test_buffers_are_as_after_one_plain_step(name):
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 4), BUFFERED[name](), nn.Linear(4, 4))

    plain, model = network(), network()
    fresh = {key: buffer.clone() for key, buffer in model.named_buffers()}
    method = sharp(model)
    for _ in range(3):
        loss_on(plain, X, Y).backward()
        method.backward(lambda: loss_on(model, X, Y))
    assert_bitwise(dict(model.named_buffers()), dict(plain.named_buffers()))
    assert any(not torch.equal(buffer, fresh[key]) for key, buffer in model.named_buffers())


def test_the_perturbed_pass_sees_the_buffers_that_the_clean_pass_left():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), Decaying())
    seen = []
    for weight in sharp(model).passes():
        seen.append(model[2].calls.item())
        (weight * loss_on(model, X, Y)).backward()
    assert seen == [0, 1]


# ---------------------------------------------------------------------------------------------- the random numbers


@pytest.mark.parametrize("schedule", [schedules.never(), schedules.always()], ids=str)
def test_a_step_consumes_the_random_numbers_of_one_plain_step(schedule):
    model = Network()
    torch.manual_seed(1)
    loss_on(model, X, Y)
    expected = torch.get_rng_state()
    torch.manual_seed(1)
    rst.RST(model, RHO, schedule).backward(lambda: loss_on(model, X, Y))
    assert_bitwise(torch.get_rng_state(), expected)


def test_a_perturbed_pass_that_draws_more_leaves_the_generator_as_the_clean_pass_did():
    """As where the weights decide how much is drawn."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    torch.manual_seed(1)
    torch.rand(1)
    expected = torch.get_rng_state()
    torch.manual_seed(1)
    for number, weight in enumerate(sharp(model).passes()):
        torch.rand(1 + number)
        (weight * loss_on(model, X, Y)).backward()
    assert_bitwise(torch.get_rng_state(), expected)


def test_making_the_method_and_reading_its_gate_consume_no_random_number():
    model, before = Network(), torch.get_rng_state()
    method = rst.RST(model, RHO, schedules.constant(0.5), total_steps=5000)
    assert method.gate.any()
    assert_bitwise(torch.get_rng_state(), before)


def test_both_passes_draw_the_same_dropout_masks_and_the_next_step_draws_others():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    method, masks = sharp(model), []
    for _ in range(2):
        for weight in method.passes():
            masks.append(F.dropout(torch.ones(100)))
            (weight * loss_on(model, X, Y)).backward()
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])
