"""Weight decay as a part of the loss."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import gradient
from torch import Tensor, nn
from torch.nn import functional as F

import rst
from rst import schedules
from rst.experiments.training.l2 import l2
from rst.experiments.training.step import micro_batches

STRENGTH = 0.3  # large, so that an error in it shows
RHO = 0.1
X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(12) % 3


def network() -> nn.Module:
    """BatchNorm and biases, none of them zero, in double precision."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    for p in model.parameters():
        nn.init.normal_(p)
    return model


def as_a_sum(model: nn.Module, strength: float = STRENGTH) -> Tensor:
    return strength / 2 * sum((p**2).sum() for p in model.parameters())


def loss_with(decay: Callable[[nn.Module], Tensor], model: nn.Module, x: Tensor = X, y: Tensor = Y) -> Tensor:
    return F.cross_entropy(model(x), y) + decay(model)


def as_one_node(model: nn.Module) -> Tensor:
    return l2(model.parameters(), STRENGTH)


def assert_to_rounding(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


shapes = st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5)


@settings(max_examples=50)
@given(shapes=shapes, strength=st.floats(0, 10), scale=st.floats(-4, 4), seed=st.integers(0, 99))
def test_value_and_gradient_equal_autograd_on_the_as_a_sum_sum(shapes, strength, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    fast, plain = l2(weights, strength), strength / 2 * sum((w * w).sum() for w in weights)
    assert_to_rounding(fast, plain)
    # A factor on the loss, as of a pass, a micro-batch or a loss scaler, reaches the gradient.
    for actual, expected in zip(
        torch.autograd.grad(scale * fast, weights), torch.autograd.grad(scale * plain, weights), strict=True
    ):
        assert_to_rounding(actual, expected)


def test_weights_that_are_all_zero_have_a_gradient_of_zero():
    weight = torch.zeros(3, requires_grad=True)
    l2([weight], STRENGTH).backward()
    assert weight.grad.tolist() == [0, 0, 0]


def test_a_frozen_parameter_counts_in_the_value_and_gets_no_gradient():
    trained, frozen = torch.ones(2, requires_grad=True), torch.ones(2)
    loss = l2([trained, frozen], 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2)
    assert frozen.grad is None


def test_the_second_derivative_is_right_too():
    weight = torch.ones(2, requires_grad=True)
    (first,) = torch.autograd.grad((weight**3).sum() + l2([weight], STRENGTH), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    torch.testing.assert_close(second, 6 * weight.detach() + STRENGTH)


SCHEMES = {
    "sgd": (schedules.never(), 1.0),
    "sam": (schedules.always(), 1.0),
    "gnr": (schedules.always(), 0.8),
    "grst": (schedules.always(), 2.0),
}
schemes = pytest.mark.parametrize(("schedule", "c"), SCHEMES.values(), ids=SCHEMES)


@schemes
def test_on_clean_and_sharp_steps_the_gradient_is_that_of_the_as_a_sum_loss(schedule, c):
    gradients = []
    for decay in (as_one_node, as_a_sum):
        model = network()
        rst.RST(model, RHO, schedule, gamma_ratio=c).backward(lambda model=model, decay=decay: loss_with(decay, model))
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[1].items():
        assert_to_rounding(gradients[0][name], expected)


@schemes
def test_under_a_loss_scaler_and_in_micro_batches_the_gradient_is_that_of_the_loss_with_the_plain_sum(schedule, c):
    gradients = []
    for decay in (as_one_node, as_a_sum):
        model = network()
        optimizer, scaler = torch.optim.SGD(model.parameters()), torch.amp.GradScaler("cpu", init_scale=2.0**12)
        method = rst.RST(model, RHO, schedule, gamma_ratio=c)
        for x, y, last in micro_batches(model, X, Y, 4):
            for weight in method.passes(advance=last):
                scaler.scale(weight / 3 * loss_with(decay, model, x, y)).backward()
        scaler.unscale_(optimizer)
        gradients.append(gradient(list(model.parameters())))
    assert_to_rounding(*gradients)


def passes_of_a_sharp_step(decay: Callable[[nn.Module], Tensor]) -> Iterator[tuple[list[Tensor], Tensor]]:
    """The weights that each pass sees, and the gradient of its loss."""
    model = network()
    for _ in rst.RST(model, RHO, schedules.always()).passes():
        loss = loss_with(decay, model)
        weights = list(model.parameters())
        yield (
            [w.detach().clone() for w in weights],
            nn.utils.parameters_to_vector(torch.autograd.grad(loss, weights, retain_graph=True)),
        )
        loss.backward()


def test_decay_enters_the_clean_gradient_its_norm_and_the_perturbed_gradient():
    (theta, g), (perturbed, g_s) = passes_of_a_sharp_step(as_one_node)
    (_, raw), _ = passes_of_a_sharp_step(lambda model: torch.zeros((), dtype=torch.float64))

    assert_to_rounding(g - raw, STRENGTH * nn.utils.parameters_to_vector(theta))
    step = nn.utils.parameters_to_vector(perturbed) - nn.utils.parameters_to_vector(theta)
    assert_to_rounding(step, RHO * g / g.norm())

    moved = network()
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(perturbed), moved.parameters())
    loss = F.cross_entropy(moved(X), Y)
    raw_s = nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(moved.parameters())))
    assert_to_rounding(g_s - raw_s, STRENGTH * nn.utils.parameters_to_vector(perturbed))


def test_biases_and_normalisation_decay_like_every_other_parameter():
    model = network()
    l2(model.parameters(), STRENGTH).backward()
    for name, p in model.named_parameters():
        assert p.abs().sum() > 0, name
        torch.testing.assert_close(p.grad, STRENGTH * p.detach(), msg=name)
