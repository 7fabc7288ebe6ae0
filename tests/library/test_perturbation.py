"""θ + ε and back: the size and direction of ε, weights of any floating type, gradients that are not finite."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import assert_bitwise, batch, clean_gradient, gradient, loss_on, perceptron
from torch import Tensor, nn

import rst
from rst import schedules
from rst.perturbation import Vector

RHO = 0.1
X, Y = batch(0)


class Weights(nn.Module):
    """Parameters of the given shapes, with a loss whose gradient can be chosen."""

    def __init__(self, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.ParameterList(torch.randn(shape, dtype=dtype) for shape in shapes)

    def loss(self, gradients: list[Tensor]) -> Tensor:
        """A loss that is linear in the weights and has these gradients."""
        return sum((p * g).sum() for p, g in zip(self.weights, gradients, strict=True))

    def vector(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.weights])


def perturbation(model: Weights, gradients: list[Tensor], rho: float) -> Tensor:
    """ε of one sharp step with these clean gradients."""
    method = rst.RST(model, rho, schedules.always())
    seen = []
    for weight in method.passes():
        seen.append(model.vector())
        (weight * model.loss(gradients)).backward()
    return seen[1] - seen[0]


@given(
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=4),
    rho=st.floats(1e-3, 1e2),
    exponent=st.floats(-6, 8),
)
@settings(max_examples=50)
def test_the_perturbation_has_norm_rho_along_the_gradient_over_all_parameters(shapes, rho, exponent):
    model = Weights(*shapes, dtype=torch.float64)
    gradients = [10.0**exponent * torch.randn_like(p).add(0.1) for p in model.weights]
    epsilon = perturbation(model, gradients, rho)
    direction = torch.cat([g.flatten() for g in gradients])
    torch.testing.assert_close(epsilon, rho * direction / direction.norm(), rtol=1e-5, atol=1e-12)
    assert epsilon.norm().item() == pytest.approx(rho, rel=1e-5)


def test_rho_may_change_over_the_training():
    model = Weights((4,), dtype=torch.float64)
    method = rst.RST(model, lambda t, total_steps: (t + 1) / total_steps, schedules.always(), total_steps=4)
    for t in range(4):
        seen = []
        for weight in method.passes():
            seen.append(model.vector())
            (weight * model.loss([torch.ones(4)])).backward()
        assert (seen[1] - seen[0]).norm().item() == pytest.approx((t + 1) / 4)


def test_a_zero_gradient_gives_no_perturbation():
    model = Weights((3,), (2, 2))
    assert_bitwise(perturbation(model, [torch.zeros(3), torch.zeros(2, 2)], RHO), torch.zeros(7))
    assert_bitwise(gradient(list(model.parameters())), torch.zeros(7))


def test_a_radius_of_zero_gives_the_clean_gradient():
    model = perceptron()
    expected = clean_gradient(model, lambda: loss_on(model, X, Y))
    model.zero_grad()
    rst.RST(model, 0.0, schedules.always()).backward(lambda: loss_on(model, X, Y))
    assert_bitwise(gradient(list(model.parameters())), expected)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_after_a_clean_gradient_that_is_not_finite_the_weights_are_back_and_the_result_shows_it(value, c):
    """So that a loss scaler skips the step. The next step is as it would be without it."""
    model, other = perceptron(), perceptron()
    method, expected = (rst.RST(m, RHO, schedules.always(), gamma_ratio=c) for m in (model, other))
    before = [p.detach().clone() for p in model.parameters()]
    for number, weight in enumerate(method.passes()):
        loss = loss_on(model, X, Y)
        (weight * (loss * value if number == 0 else loss)).backward()
    assert_bitwise([p.detach() for p in model.parameters()], before)
    assert not gradient(list(model.parameters())).isfinite().all()
    model.zero_grad()
    method.backward(lambda: loss_on(model, X, Y))
    expected.backward(lambda: loss_on(other, X, Y))
    assert_bitwise(gradient(list(model.parameters())), gradient(list(other.parameters())))


@pytest.mark.parametrize("c", [1.0, 2.0])
def test_a_finite_gradient_whose_norm_overflows_perturbs_nothing(c):
    """3e38 is finite, but its norm over several parameters is not."""
    model = Weights((3,), (2,))
    before = model.vector()
    method = rst.RST(model, RHO, schedules.always(), gamma_ratio=c)
    large, small = [torch.full((3,), 3e38), torch.ones(2)], [torch.ones(3), torch.ones(2)]
    for weight, gradients in zip(method.passes(), (large, small), strict=True):
        assert_bitwise(model.vector(), before)
        (weight * model.loss(gradients)).backward()
    assert_bitwise(model.vector(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_floating_type_are_perturbed(dtype):
    model = Weights((50,), (50,), dtype=dtype)
    epsilon = perturbation(model, [torch.ones(50, dtype=dtype)] * 2, 1.0)
    assert epsilon.double().norm().item() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("first", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("second", [torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_several_floating_types_are_perturbed_by_one_common_norm(first, second):
    """In any order, as where a network keeps one layer in double or in half precision."""
    model = Weights((50,))
    model.weights = nn.ParameterList([torch.zeros(50, dtype=first), torch.zeros(50, dtype=second)])
    epsilon = perturbation(model, [torch.ones(50, dtype=first), torch.ones(50, dtype=second)], 1.0)
    assert epsilon.double().norm().item() == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_norm_and_dot_are_those_of_one_long_vector_in_float32_or_more(dtype, tolerance):
    torch.manual_seed(0)
    a, b = (Vector([torch.randn(3, 4).to(dtype), torch.randn(5).to(dtype)], [0, 1], ["a", "b"]) for _ in range(2))
    long_a, long_b = (torch.cat([t.flatten() for t in vector]).double() for vector in (a, b))
    for actual, expected in ((a.norm(), long_a.norm()), (a.dot(b), long_a @ long_b)):
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
