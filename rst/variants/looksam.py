"""LookSAM: the direction of an earlier perturbed gradient, used again (Liu et al., 2022)."""

from typing import Any

import torch
from torch import Tensor

from rst.checks import at_least
from rst.variants.variant import Variant
from rst.vectors import EPSILON, dot, norm


class LookSAM(Variant):
    """Every k-th sharp step is SAM's; those between have one pass and g + alpha ‖g‖/‖g_v‖ g_v.

    g_v = g_s - ⟨g_s, ĝ⟩ ĝ is what the last SAM step had orthogonal to its clean gradient. The first sharp step is
    SAM's. State: the count of sharp steps and one g_v, of each rank and micro-batch.
    """

    def __init__(self, k: int = 5, alpha: float = 0.7) -> None:
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise ValueError(f"k must be an integer from 1, got {k!r}.")
        self.k, self.alpha = k, at_least(0, "alpha", alpha)
        self.extra_passes = 1 / k
        self.counts: dict[int, int] = {}
        self.directions: dict[int, list[Tensor]] = {}

    def perturbs(self, part: int) -> bool:
        """Whether this sharp step of the micro-batch is the first, or k after the last such."""
        return self.counts.get(part, 0) % self.k == 0

    def combine(self, sharp: list[Tensor], clean: list[Tensor], part: int) -> None:
        """Keep g_v; or add α ‖g‖/‖g_v‖ g_v to g."""
        if self.perturbs(part):
            along = dot(sharp, clean) / (norm(clean) + EPSILON).square()
            direction = list(torch._foreach_mul(clean, -along))
            torch._foreach_add_(direction, sharp)
            # One that is not finite, as under a loss scaler that overflows, would spoil k steps: keep the old.
            finite = norm(direction).isfinite()
            old = self.directions.get(part) or [torch.zeros_like(g) for g in clean]
            self.directions[part] = [torch.where(finite, new, kept) for new, kept in zip(direction, old, strict=True)]
        else:
            direction = self.directions[part]
            scale = self.alpha * norm(clean) / (norm(direction) + EPSILON)
            torch._foreach_add_(sharp, torch._foreach_mul(direction, scale))
        self.counts[part] = self.counts.get(part, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """The counts and g_v."""
        return {"counts": dict(self.counts), "directions": {part: list(v) for part, v in self.directions.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.counts = dict(state["counts"])
        self.directions = {part: list(v) for part, v in state["directions"].items()}
