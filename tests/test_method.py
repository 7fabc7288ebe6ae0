"""The gradient that a step leaves in `.grad`: eq. 5, 7 and 9 on real networks, against plain versions of each."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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


def gradient_of(method: rst.RST, model: nn.Module) -> Tensor:
    model.zero_grad()
    method.backward(lambda: loss_on(model, X, Y))
    return gradient(list(model.parameters()))


def train(optimizer_name: str, step_of, steps: int = 12):
    """The state after some steps; ``step_of(model)`` gives a function (t, x, y) that leaves a gradient in `.grad`."""
    model = Network()
    optimizer = OPTIMIZERS[optimizer_name](model.groups())
    step = step_of(model)
    torch.manual_seed(5)
    for t in range(steps):
        optimizer.zero_grad()
        step(t, *batch(t))
        optimizer.step()
    return state(model, optimizer)


def by_method(**arguments):
    def step_of(model):
        method = rst.RST(model, rho=RHO, total_steps=12, **arguments)

        def step(t, x, y):
            for weight in method.passes():
                (weight * loss_on(model, x, y)).backward()

        return step

    return step_of


def by_plain_backward(model):
    return lambda t, x, y: loss_on(model, x, y).backward()


def by_textbook_sam(model):
    return lambda t, x, y: sam_backward(model, lambda: loss_on(model, x, y), RHO)


# ------------------------------------------------------------------------------------- the schemes, step after step


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_gate_that_never_opens_is_bitwise_the_plain_optimizer(optimizer):
    """Weights, buffers, optimizer state and random numbers consumed."""
    assert_bitwise(
        train(optimizer, by_method(schedule=schedules.never(), gamma_ratio=2.0)), train(optimizer, by_plain_backward)
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_gate_that_always_opens_is_bitwise_textbook_sam(optimizer):
    sam = train(optimizer, by_textbook_sam)
    assert_bitwise(train(optimizer, by_method(schedule=schedules.always())), sam)
    assert not torch.equal(sam["model"]["conv.weight"], train(optimizer, by_plain_backward)["model"]["conv.weight"])


def test_normalising_the_clean_gradient_changes_nothing_at_a_ratio_of_one():
    normalised = train("momentum", by_method(schedule=schedules.always(), normalise_clean=True))
    assert_bitwise(normalised, train("momentum", by_textbook_sam))


def test_a_gate_that_opens_at_times_is_bitwise_sgd_and_sam_in_its_own_order():
    gate = rst.RST(Network(), RHO, schedules.constant(0.5), total_steps=12, seed=3).gate
    assert 0 < gate.sum() < 12

    def by_hand(model):
        sgd, sam = by_plain_backward(model), by_textbook_sam(model)
        return lambda t, x, y: (sam if gate[t] else sgd)(t, x, y)

    assert_bitwise(train("momentum", by_method(schedule=schedules.constant(0.5), seed=3)), train("momentum", by_hand))


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_ratio_of_zero_is_bitwise_the_plain_optimizer(optimizer):
    assert_bitwise(
        train(optimizer, by_method(schedule=schedules.always(), gamma_ratio=0.0)), train(optimizer, by_plain_backward)
    )


# --------------------------------------------------------------------------------------------- the mixture (eq. 7)


@pytest.mark.parametrize("c", [0.0, 0.8, 1.0, 2.0, 10.0])
def test_an_open_gate_mixes_the_clean_and_the_perturbed_gradient(c):
    model = perceptron()
    expected = mixed_gradient(model, lambda: loss_on(model, X, Y), RHO, c)
    actual = gradient_of(rst.RST(model, RHO, schedules.always(), gamma_ratio=c), model)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def gradients_of_both_outcomes(model: nn.Module, p: float, c: float | str) -> tuple[Tensor, Tensor]:
    method = rst.RST(model, RHO, schedules.constant(p), gamma_ratio=c, total_steps=200)
    outcomes = []
    for is_open in (False, True):
        method.load_state_dict({"t": int((method.gate == is_open).nonzero()[0])})
        outcomes.append(gradient_of(method, model))
    return outcomes[0], outcomes[1]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("ratio", ["auto", "1/p"])
def test_with_a_ratio_of_one_over_p_the_mean_over_both_outcomes_is_the_gradient_of_sam(p, ratio):
    model = perceptron()
    closed, opened = gradients_of_both_outcomes(model, p, "auto" if ratio == "auto" else 1 / p)
    sam = mixed_gradient(model, lambda: loss_on(model, X, Y), RHO, 1.0)
    torch.testing.assert_close((1 - p) * closed + p * opened, sam, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("p", "c"), [(0.5, 1.0), (0.3, 0.8), (0.8, 3.0)])
def test_the_expected_gradient_is_that_of_a_ratio_of_p_times_c(p, c):
    """E g_t = (1 - pc) g + pc g_s (eq. 8)."""
    model = perceptron()
    closed, opened = gradients_of_both_outcomes(model, p, c)
    expected = mixed_gradient(model, lambda: loss_on(model, X, Y), RHO, p * c)
    torch.testing.assert_close((1 - p) * closed + p * opened, expected, rtol=1e-9, atol=1e-12)


def test_the_clean_gradient_can_be_normalised_in_the_mixture():
    model = perceptron()
    clean = clean_gradient(model, lambda: loss_on(model, X, Y))
    sharp = perturbed_gradient(model, lambda: loss_on(model, X, Y), clean, RHO)
    method = rst.RST(model, RHO, schedules.always(), gamma_ratio=2.0, normalise_clean=True)
    torch.testing.assert_close(gradient_of(method, model), -clean / clean.norm() + 2 * sharp, rtol=1e-9, atol=1e-11)


def test_auto_is_one_over_the_mean_of_the_schedule():
    schedule = schedules.linear(0.3)
    method = rst.RST(perceptron(), RHO, schedule, gamma_ratio="auto", total_steps=50)
    assert method.gamma_ratio == pytest.approx(1 / schedule.mean(50))


def test_backward_leaves_the_gradient_of_the_loop_and_returns_the_clean_loss():
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


# ----------------------------------------------------------------------------------------------- the perturbation


class Weights(nn.Module):
    """Parameters of the given shapes, on which the gradient can be chosen."""

    def __init__(self, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.ParameterList(torch.randn(shape, dtype=dtype) for shape in shapes)

    def product(self, gradients: list[Tensor]) -> Tensor:
        return sum((p * g).sum() for p, g in zip(self.weights, gradients, strict=True))

    def vector(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.weights])


def perturbation(model: Weights, gradients: list[Tensor], rho, total_steps=None) -> Tensor:
    """ε of one sharp step whose clean gradient is given."""
    method = rst.RST(model, rho, schedules.always(), total_steps=total_steps)
    seen = []
    for weight in method.passes():
        seen.append(model.vector())
        (weight * model.product(gradients)).backward()
    return seen[1] - seen[0]


@given(
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=4),
    rho=st.floats(1e-3, 1e2),
    exponent=st.floats(-6, 8),
)
@settings(deadline=None, max_examples=50)
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
            (weight * model.product([torch.ones(4)])).backward()
        assert (seen[1] - seen[0]).norm().item() == pytest.approx((t + 1) / 4)


def test_a_zero_gradient_perturbs_nothing():
    model = Weights((3,), (2, 2))
    assert_bitwise(perturbation(model, [torch.zeros(3), torch.zeros(2, 2)], RHO), torch.zeros(7))
    assert_bitwise(gradient(list(model.parameters())), torch.zeros(7))


def test_a_radius_of_zero_is_the_clean_gradient():
    model = perceptron()
    expected = clean_gradient(model, lambda: loss_on(model, X, Y))
    actual = gradient_of(rst.RST(model, 0.0, schedules.always()), model)
    assert_bitwise(actual, expected)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 3e38])
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_a_clean_gradient_that_is_not_finite_perturbs_nothing_yet_stays_visible(value, c):
    """3e38 is finite, but its norm over several parameters is not."""
    model = Weights((3,), (2,))
    before = model.vector()
    method = rst.RST(model, RHO, schedules.always(), gamma_ratio=c)
    bad, good = [torch.full((3,), value), torch.ones(2)], [torch.ones(3), torch.ones(2)]
    for weight, gradients in zip(method.passes(), (bad, good), strict=True):
        assert_bitwise(model.vector(), before)
        (weight * model.product(gradients)).backward()
    assert_bitwise(model.vector(), before)
    if value != 3e38:
        assert not gradient(list(model.parameters()))[:3].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_floating_type_are_perturbed(dtype):
    model = Weights((50,), (50,), dtype=dtype)
    epsilon = perturbation(model, [torch.ones(50, dtype=dtype)] * 2, 1.0)
    assert epsilon.double().norm().item() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("first", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("second", [torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_several_floating_types_have_one_norm(first, second):
    """In any order, as where a network keeps one layer in double or in half precision."""
    model = Weights((50,))
    model.weights = nn.ParameterList([torch.zeros(50, dtype=first), torch.zeros(50, dtype=second)])
    epsilon = perturbation(model, [torch.ones(50, dtype=first), torch.ones(50, dtype=second)], 1.0)
    assert epsilon.double().norm().item() == pytest.approx(1.0, rel=0.01)


# ------------------------------------------------------------------------------ gradients in one of the passes only


@pytest.mark.parametrize("used_in", [0, 1], ids=["clean", "perturbed"])
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_a_layer_used_in_one_pass_only_is_restored_and_gets_that_share_of_the_gradient(used_in, c):
    """As with stochastic depth, where the passes drop different layers."""
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


# ------------------------------------------------------------------------------------------------------- the library


def test_the_library_imports_torch_alone():
    code = """
import sys, torch
before = set(sys.modules)
import rst
print(*{name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= {"rst", "torch"}
