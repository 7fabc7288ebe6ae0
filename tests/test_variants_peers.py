"""SAM, ASAM and GSAM beside `pytorch_optimizer`, where that implements the same rule.

Its LookSAM is another one: it takes norms per tensor, and restores the weights of the last refresh on every step.
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

peer = pytest.importorskip("pytorch_optimizer")

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
    optimizer = peer.SAM(model.parameters(), torch.optim.SGD, rho=rho, adaptive=adaptive, **SETTINGS)
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
def test_sam_and_asam_are_the_peer_s(variant, rho, adaptive):
    """Up to its norm, which is in single precision. On a network without BatchNorm, whose buffers the peer moves twice.

    Like ours with eta = 0, its adaptive perturbation has T = |θ| in every tensor.
    """
    torch.testing.assert_close(
        ours(perceptron, rho, variant), theirs(perceptron(), rho, adaptive), rtol=1e-5, atol=1e-6
    )


class FallingRho:
    """What the peer asks for rho, once a step and once before the first."""

    def __init__(self) -> None:
        self.t = 0

    def step(self) -> float:
        self.t += 1
        return falling(self.t - 1)


def falling(t: int, total_steps: int | None = None) -> float:
    return 0.2 - 0.005 * t


def test_gsam_is_the_peer_s():
    """Also with BatchNorm, and a rho that falls.

    Up to the norm of g_s, which is in single precision. Its weights are restored by subtraction, ours by copy. Its
    adaptive form, with w² in ε, is not what our GSAM has.
    """
    model = network()
    base = torch.optim.SGD(model.parameters(), **SETTINGS)
    optimizer = peer.GSAM(model.parameters(), base, model=model, rho_scheduler=FallingRho(), alpha=0.4)
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


def test_the_peer_s_three_rules_differ():
    """So that the tests above can fail."""
    ends = [ours(network, 0.2, variant) for variant in ("sam", ASAM(), GSAM(0.4))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (ends[a] - ends[b]).abs().max() > 1e-3
