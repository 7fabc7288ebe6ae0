"""The interface of the variants, and its plainest case, SAM."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rst.vectors import EPSILON, norm

Closure = Callable[[Any], Tensor]
"""Rows of the batch -> the loss of each, [n]."""


class Variant:
    """How a sharp step turns the clean gradient g into the sharp one; as it stands, SAM: ε = ρ g/‖g‖, then g_s.

    A variant overrides `perturb`, if its ε is another; or `combine`, if its sharp gradient is more than the gradient
    at θ + ε. The gate, c, micro-batches, devices, buffers, dropout and precision are not its business.
    """

    extra_passes: float = 1.0
    """Expected cost of a sharp step beyond that of a plain one, in passes."""

    by_sample = False
    """Whether it needs the loss of each sample, and so `RST.backward` with a closure over rows of the batch."""

    def perturb(self, out: list[Tensor], weights: list[Tensor], gradients: list[Tensor], rho: float) -> None:
        """Write ε into ``out``, the parameters themselves, for the weights θ and the gradient g."""
        torch._foreach_copy_(out, gradients)
        torch._foreach_mul_(out, rho / (norm(gradients) + EPSILON))

    combine: Callable[..., None] | None = None
    """``combine(sharp, clean, part)``: turn g_s, held by ``sharp``, into the sharp gradient, in place, with g in
    ``clean``. None where that is g_s itself, which needs no copy of g. ``part`` is the number of the micro-batch."""

    def perturbs(self, part: int) -> bool:
        """Whether this sharp step has a perturbed pass; without one, ``combine`` gets g itself in ``sharp``."""
        return True

    def begin(self, parameters: Sequence[Tensor], t: int, total_steps: int | None, seed: int) -> None:
        """Sharp step t begins, of these trainable parameters; `perturb` gets those of them that have a gradient."""

    def observe(self, closure: Closure, parameters: Sequence[Tensor], samples: int) -> float:
        """After the clean pass, at θ, where ``by_sample``: look at samples; its cost, in passes."""
        return 0.0

    def select(self, closure: Closure, clean_losses: Tensor) -> tuple[Any, float, float]:
        """At θ + ε, where ``by_sample``: rows for the perturbed pass; its cost in forward and in backward passes."""
        return slice(None), 1.0, 1.0

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from step to step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""


class SAM(Variant):
    """Sharpness-aware minimisation (Foret et al., 2021): ε = ρ g/‖g‖ (Algorithm 1, line 8)."""
