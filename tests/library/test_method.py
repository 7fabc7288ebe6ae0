"""The gradient that a step leaves in `.grad`: eq. 5, 7 and 9 on real networks, against plain versions of each."""

from collections.abc import Callable

import pytest
import torch
from textbook import (
    OPTIMIZERS,
    Network,
    assert_bitwise,
    batch,
    clean_gradient,
    gradient,
    loss_on,
    mixed_gradient,
    perceptron,
    perturbed_gradient,
    sam_backward,
    state,
)
from torch import Tensor, nn

import rst
from rst import schedules

RHO = 0.1
X, Y = batch(0)

Step = Callable[[int, Tensor, Tensor], None]
"""Leaves the gradient of step t on a batch (x, y) in `.grad`."""


def gradient_of(method: rst.RST, model: nn.Module) -> Tensor:
    model.zero_grad()
    method.backward(lambda: loss_on(model, X, Y))
    return gradient(list(model.parameters()))


def train(optimizer_name: str, step_of: Callable[[Network], Step], steps: int = 12) -> dict:
    """The state of model, optimizer and random number generator after some steps."""
    model = Network()
    optimizer = OPTIMIZERS[optimizer_name](model.groups())
    step = step_of(model)
    torch.manual_seed(5)
    for t in range(steps):
        optimizer.zero_grad()
        step(t, *batch(t))
        optimizer.step()
    return state(model, optimizer)


def by_method(**arguments) -> Callable[[Network], Step]:
    def step_of(model: Network) -> Step:
        method = rst.RST(model, rho=RHO, total_steps=12, **arguments)

        def step(t: int, x: Tensor, y: Tensor) -> None:
            for weight in method.passes():
                (weight * loss_on(model, x, y)).backward()

        return step

    return step_of


def by_plain_backward(model: Network) -> Step:
    return lambda t, x, y: loss_on(model, x, y).backward()


def by_textbook_sam(model: Network) -> Step:
    return lambda t, x, y: sam_backward(model, lambda: loss_on(model, x, y), RHO)


# The schemes, over several steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_p_0_training_equals_the_plain_optimizer_bit_for_bit(optimizer):
    """In weights, buffers, the optimizer's state and the random numbers that were drawn."""
    assert_bitwise(
        train(optimizer, by_method(schedule=schedules.never(), gamma_ratio=2.0)), train(optimizer, by_plain_backward)
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_p_1_and_c_1_training_equals_textbook_sam_bit_for_bit(optimizer):
    sam = train(optimizer, by_textbook_sam)
    assert_bitwise(train(optimizer, by_method(schedule=schedules.always())), sam)
    assert not torch.equal(sam["model"]["conv.weight"], train(optimizer, by_plain_backward)["model"]["conv.weight"])


def test_with_p_between_0_and_1_every_step_is_that_of_sgd_or_of_sam_bit_for_bit():
    gate = rst.RST(Network(), RHO, schedules.constant(0.5), total_steps=12, seed=3).gate
    assert 0 < gate.sum() < 12

    def by_hand(model: Network) -> Step:
        sgd, sam = by_plain_backward(model), by_textbook_sam(model)
        return lambda t, x, y: (sam if gate[t] else sgd)(t, x, y)

    assert_bitwise(train("momentum", by_method(schedule=schedules.constant(0.5), seed=3)), train("momentum", by_hand))


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_with_c_0_training_equals_the_plain_optimizer_bit_for_bit(optimizer):
    assert_bitwise(
        train(optimizer, by_method(schedule=schedules.always(), gamma_ratio=0.0)), train(optimizer, by_plain_backward)
    )


def test_with_c_1_normalise_clean_trains_like_textbook_sam_bit_for_bit():
    normalised = train("momentum", by_method(schedule=schedules.always(), normalise_clean=True))
    assert_bitwise(normalised, train("momentum", by_textbook_sam))


# The mixed gradient (eq. 7) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.0, 0.8, 1.0, 2.0, 10.0])
def test_a_sharp_step_mixes_the_clean_and_the_perturbed_gradient(c):
    model = perceptron()
    expected = mixed_gradient(model, lambda: loss_on(model, X, Y), RHO, c)
    actual = gradient_of(rst.RST(model, RHO, schedules.always(), gamma_ratio=c), model)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def plain_and_sharp_gradient(model: nn.Module, p: float, c: float | str) -> tuple[Tensor, Tensor]:
    """The gradients of a plain and of a sharp step of one training, on the same weights and batch."""
    method = rst.RST(model, RHO, schedules.constant(p), gamma_ratio=c, total_steps=200)
    gradients = []
    for is_sharp in (False, True):
        method.load_state_dict({**method.state_dict(), "t": int((method.gate == is_sharp).nonzero()[0])})
        gradients.append(gradient_of(method, model))
    return gradients[0], gradients[1]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("ratio", ["auto", "1/p"])
def test_with_c_1_over_p_the_expected_gradient_is_that_of_sam(p, ratio):
    model = perceptron()
    plain, sharp = plain_and_sharp_gradient(model, p, "auto" if ratio == "auto" else 1 / p)
    sam = mixed_gradient(model, lambda: loss_on(model, X, Y), RHO, 1.0)
    torch.testing.assert_close((1 - p) * plain + p * sharp, sam, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("p", "c"), [(0.5, 1.0), (0.3, 0.8), (0.8, 3.0)])
def test_the_expected_gradient_is_that_of_gnr_with_ratio_p_times_c(p, c):
    """E g_t = (1 - pc) g + pc g_s (eq. 6 to 8)."""
    model = perceptron()
    plain, sharp = plain_and_sharp_gradient(model, p, c)
    expected = mixed_gradient(model, lambda: loss_on(model, X, Y), RHO, p * c)
    torch.testing.assert_close((1 - p) * plain + p * sharp, expected, rtol=1e-9, atol=1e-12)


def test_auto_is_one_over_the_mean_of_the_schedule():
    schedule = schedules.linear(0.3)
    method = rst.RST(perceptron(), RHO, schedule, gamma_ratio="auto", total_steps=50)
    assert method.gamma_ratio == pytest.approx(1 / schedule.mean(50))


def test_backward_leaves_the_gradient_of_the_loop_over_passes_and_returns_the_clean_loss():
    model = perceptron()
    method = rst.RST(model, RHO, schedules.always(), gamma_ratio=2.0)
    for weight in method.passes():
        (weight * loss_on(model, X, Y)).backward()
    by_loop = gradient(list(model.parameters()))
    model.zero_grad()
    loss = method.backward(lambda: loss_on(model, X, Y))
    assert_bitwise(gradient(list(model.parameters())), by_loop)
    assert_bitwise(loss, loss_on(model, X, Y).detach())
    assert method.t == 2


@pytest.mark.parametrize("used_in", [0, 1], ids=["clean", "perturbed"])
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_a_layer_used_in_one_pass_only_gets_the_gradient_of_that_pass_and_is_restored(used_in, c):
    """As with stochastic depth, where each pass may skip other layers."""
    torch.manual_seed(0)
    body, extra = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    model = nn.ModuleList([body, extra])
    x = torch.randn(4, 3, dtype=torch.float64)

    def loss(with_extra: bool) -> Tensor:
        return (extra(body(x)) if with_extra else body(x)).square().mean()

    clean = clean_gradient(model, lambda: loss(used_in == 0))
    sharp = perturbed_gradient(model, lambda: loss(used_in == 1), clean, RHO)
    model.zero_grad()
    before = [p.detach().clone() for p in model.parameters()]
    method = rst.RST(model, RHO, schedules.always(), gamma_ratio=c)
    for index, weight in enumerate(method.passes()):
        (weight * loss(used_in == index)).backward()
    expected = (1 - c) * clean + c * sharp
    torch.testing.assert_close(gradient(list(model.parameters())), expected, rtol=1e-9, atol=1e-12)
    assert_bitwise([p.detach() for p in model.parameters()], before)
