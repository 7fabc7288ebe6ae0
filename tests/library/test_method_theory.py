"""The law of G-RST's gradient noise, and Theorems 1 and 2 for a perturbation of fixed norm ρ, on a quadratic.

L(θ) = ½ θᵀ H θ has a β-Lipschitz gradient with β the largest eigenvalue of H, satisfies the Polyak-Łojasiewicz
condition (eq. 28) with ϱ the smallest, and has the minimum L* = 0.
"""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rst
from rst import schedules

CURVATURES = torch.linspace(0.2, 2.0, 20, dtype=torch.float64)
VARRHO, BETA = CURVATURES.min().item(), CURVATURES.max().item()


class Quadratic(nn.Module):
    """A module whose parameters are θ and whose forward pass returns L(θ)."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(start.clone())

    def forward(self) -> Tensor:
        return 0.5 * (CURVATURES * self.theta.square()).sum()

    def squared_gradient_norm(self) -> float:
        return (CURVATURES * self.theta.detach()).square().sum().item()


def start(seed: int = 0) -> Tensor:
    return torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def both_steps(theta: Tensor, rho: float, c: float) -> Iterator[Quadratic]:
    """The model after the backward passes of a plain step, and after those of a sharp one."""
    for schedule in (schedules.never(), schedules.always()):
        model = Quadratic(theta)
        rst.RST(model, rho, schedule, gamma_ratio=c).backward(model)
        yield model


# --------------------------------------------------------------------------------------------------- the gradient noise


@given(
    seed=st.integers(0, 1000),
    size=st.floats(1e-3, 10),
    rho=st.floats(1e-3, 3),
    p=st.floats(0.02, 1),
    c=st.floats(0, 20) | st.none(),
)
@settings(max_examples=100)
def test_over_the_gate_the_gradient_has_the_mean_of_eq_8_and_a_noise_that_grows_with_c_squared(seed, size, rho, p, c):
    """E g_t = g + p c (g_s - g) and E‖g_t - E g_t‖² = p (1 - p) c² ‖g_s - g‖² (eq. 6, 7 and 9).

    At c = 1/p, which is drawn as None, these are SAM's gradient g_s and (1 - p)/p ‖g_s - g‖².
    """
    theta, ratio = size * start(seed), 1 / p if c is None else c
    plain, sharp = (model.theta.grad for model in both_steps(theta, rho, ratio))
    mean = (1 - p) * plain + p * sharp
    noise = (1 - p) * (plain - mean).square().sum() + p * (sharp - mean).square().sum()

    g = CURVATURES * theta
    g_s = CURVATURES * (theta + rho * g / g.norm())
    share, spread = (p * ratio, p * (1 - p) * ratio**2) if c is not None else (1.0, (1 - p) / p)
    torch.testing.assert_close(mean, g + share * (g_s - g), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(noise, spread * (g_s - g).square().sum(), rtol=1e-7, atol=1e-12)


# --------------------------------------------------------------------------------------------------------- convergence


def expected_loss_after_a_step(theta: Tensor, rho: float, p: float, c: float, lr: float) -> float:
    """E L(θ_{t+1}): the mean over a plain and a sharp step, with weights 1 - p and p."""
    losses = []
    for model in both_steps(theta, rho, c):
        torch.optim.SGD(model.parameters(), lr=lr).step()
        losses.append(model().item())
    return (1 - p) * losses[0] + p * losses[1]


@given(
    seed=st.integers(0, 1000),
    size=st.floats(1e-3, 10),
    rho=st.floats(1e-3, 3),
    p=st.floats(0, 1),
    c=st.floats(0, 5),
    lr=st.floats(1e-3, 1 / BETA),
)
@settings(max_examples=100)
def test_a_step_lowers_the_expected_loss_up_to_a_term_that_grows_with_the_perturbation(seed, size, rho, p, c, lr):
    """E L(θ_{t+1}) <= L(θ_t) - α/2 ‖∇L(θ_t)‖² + α/2 p c² ρ² β², the step of both proofs (eq. 18), extended to c.

    It needs α <= 1/β only, not the condition √p ρ <= 1/β that the theorems state as well.
    """
    model = Quadratic(size * start(seed))
    loss, slope = model().item(), model.squared_gradient_norm()
    bias = p * c**2 * rho**2 * BETA**2
    after = expected_loss_after_a_step(model.theta.detach(), rho, p, c, lr)
    assert after <= loss - lr / 2 * slope + lr / 2 * bias + 1e-9
    # A step of Theorem 2, for a perturbation of norm ρ: E L(θ_{t+1}) - L* <= (1 - α ϱ) (L(θ_t) - L*) + α/2 p c² ρ² β².
    assert after <= (1 - lr * VARRHO) * loss + lr / 2 * bias + 1e-9


def train(p: float, c: float, rho: float, lr: float, steps: int, seed: int) -> tuple[list[float], float]:
    """‖∇L(θ_t)‖² at every step, and the loss after the last one."""
    model = Quadratic(start())
    method = rst.RST(model, rho, schedules.constant(p), gamma_ratio=c, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    slopes = []
    for _ in range(steps):
        slopes.append(model.squared_gradient_norm())
        method.backward(model)
        optimizer.step()
        optimizer.zero_grad()
    return slopes, model().item()


@pytest.mark.parametrize(("p", "c"), [(0.5, 1.0), (0.5, 2.0), (1.0, 1.0), (1.0, 2.0)])
def test_over_a_training_both_theorems_hold_with_c_squared_in_the_last_term(p, c):
    """Theorem 1: min E‖∇L(θ_t)‖² <= 2 (L(θ_0) - L*) / Σα + p c² ρ² β². Theorem 2: the step above, over all steps."""
    rho, lr, steps = 0.1, 0.5 / BETA, 150
    seeds = range(8 if p < 1 else 1)
    runs = [train(p, c, rho, lr, steps, seed) for seed in seeds]
    slopes = torch.tensor([slopes for slopes, _ in runs]).mean(0)
    last_loss = sum(loss for _, loss in runs) / len(runs)
    first_loss = Quadratic(start())().item()
    bias = p * c**2 * rho**2 * BETA**2
    assert slopes.min() <= 2 * first_loss / (lr * steps) + bias
    rate = 1 - lr * VARRHO
    assert last_loss <= rate**steps * first_loss + lr / 2 * bias * (1 - rate**steps) / (lr * VARRHO)


def test_the_linear_rate_of_theorem_2_does_not_hold_for_a_perturbation_of_fixed_norm():
    """Training stays at a distance from the minimum, since ρ does not become smaller with the gradient."""
    rho, lr, steps = 0.1, 0.5 / BETA, 600
    _, last_loss = train(1.0, 1.0, rho, lr, steps, seed=0)
    stated = (1 - lr * VARRHO * (1 - rho**2 * BETA**2)) ** steps * Quadratic(start())().item()
    assert last_loss > 1e6 * stated


def test_close_to_the_minimum_a_step_of_sam_raises_the_loss():
    """So eq. 15, by which the loss never rises, needs a perturbation that becomes smaller with the gradient."""
    near = 1e-3 * start()
    assert expected_loss_after_a_step(near, rho=0.1, p=1.0, c=1.0, lr=1 / BETA) > Quadratic(near)().item()
