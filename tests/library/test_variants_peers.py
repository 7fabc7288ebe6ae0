"""SAM, ASAM and GSAM against `pytorch_optimizer`, whose rules for these three are the same.

Its LookSAM follows another rule: norms are taken per tensor, and every step restores the weights of the last SAM step.
"""

from collections.abc import Callable

import pytest
import torch
from textbook import perceptron
from textbook_variants import Device, device_of, network, vector
from torch import Tensor, nn

import rst
from rst import schedules
from rst.variants import ASAM, GSAM, Variant

pytorch_optimizer = pytest.importorskip("pytorch_optimizer")

STEPS = 20
SETTINGS = {"lr": 0.1, "momentum": 0.9}
Step = Callable[[nn.Module, Device], None]


def ours(
    network: Callable[[], nn.Module], rho: float | Callable[[int, int | None], float], variant: str | Variant
) -> Tensor:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), **SETTINGS)
    method = rst.RST(model, rho, schedules.always(), variant=variant)
    for t in range(STEPS):
        method.backward(device_of(model, t))
        optimizer.step()
        optimizer.zero_grad()
    return vector(model)


def theirs(model: nn.Module, rho: float, adaptive: bool) -> Tensor:
    optimizer = pytorch_optimizer.SAM(model.parameters(), torch.optim.SGD, rho=rho, adaptive=adaptive, **SETTINGS)
    for t in range(STEPS):
        device = device_of(model, t)

        def closure(device: Device = device) -> Tensor:
            optimizer.zero_grad()
            loss = device().mean()
            loss.backward()
            return loss

        closure()
        optimizer.step(closure)
    return vector(model)


@pytest.mark.parametrize(("variant", "rho", "adaptive"), [("sam", 0.1, False), ("asam", 0.5, True)])
def test_sam_and_asam_train_like_those_of_pytorch_optimizer(variant, rho, adaptive):
    """Up to rounding: its norm is in single precision. Without BatchNorm, whose buffers it updates in both passes.

    Its adaptive perturbation is our ASAM with eta = 0: T = |θ| in every tensor.
    """
    torch.testing.assert_close(
        ours(perceptron, rho, variant), theirs(perceptron(), rho, adaptive), rtol=1e-5, atol=1e-6
    )


class FallingRho:
    """The object that its GSAM asks for rho, once before the first step and once after every step."""

    def __init__(self) -> None:
        self.t = 0

    def step(self) -> float:
        self.t += 1
        return falling(self.t - 1)


def falling(t: int, total_steps: int | None = None) -> float:
    return 0.2 - 0.005 * t


def test_gsam_trains_like_that_of_pytorch_optimizer():
    """With BatchNorm and a rho that falls, up to rounding.

    Its norm of g_s is in single precision, and it restores weights by subtraction where we copy them.
    """
    model = network()
    base = torch.optim.SGD(model.parameters(), **SETTINGS)
    optimizer = pytorch_optimizer.GSAM(model.parameters(), base, model=model, rho_scheduler=FallingRho(), alpha=0.4)
    for t in range(STEPS):
        device = device_of(model, t)

        def closure(device: Device = device) -> tuple[None, Tensor]:
            base.zero_grad()
            with torch.enable_grad():
                loss = device().mean()
                loss.backward()
            return None, loss.detach()

        optimizer.step(closure)
        optimizer.update_rho_t()
    torch.testing.assert_close(ours(network, falling, GSAM(alpha=0.4)), vector(model), rtol=1e-5, atol=1e-6)


def test_sam_asam_and_gsam_train_to_different_weights():
    """Else the tests above would pass for a variant that is taken for another."""
    ends = [ours(network, 0.2, variant) for variant in ("sam", ASAM(), GSAM(0.4))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (ends[a] - ends[b]).abs().max() > 1e-3
