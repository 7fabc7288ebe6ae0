"""LookSAM: most sharp steps reuse the direction of an earlier perturbed gradient (Liu et al., 2022)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rst.checks import non_negative, positive_integer
from rst.perturbation import EPSILON, Vector
from rst.variants.variant import Variant


class LookSAM(Variant):
    """Sharp steps 0, k, 2k, ... are SAM's; those between have one pass and the gradient g + alpha ‖g‖/‖g_v‖ g_v.

    Liu et al., 2022 (arXiv 2203.02714); Section B.6. g_v = g_s - ⟨g_s, ĝ⟩ ĝ is the component of the perturbed gradient
    orthogonal to the clean one, of the last SAM step. Only sharp steps are counted, and one that begins again, after an
    error, once. A layer that a whole step skips takes no part in it and keeps its piece of g_v. State: this count, the
    step that it counted last and g_v, of each rank and each micro-batch of a step.

    Args:
        k: an integer >= 1, in sharp steps, else ValueError; with 1 this is SAM.
        alpha: >= 0, else ValueError.

    Example:
        >>> variant, half = rst.variants.LookSAM(k=2), rst.schedules.constant(0.5)
        >>> method = rst.RST(torch.nn.Linear(2, 1), 0.1, half, variant=variant)
        >>> method.expected_extra_propagations  # p / k
        0.25
    """

    needs_whole_parameters = True

    def __init__(self, k: int = 5, alpha: float = 0.7) -> None:
        self.k, self.alpha = positive_integer("k", k), non_negative("alpha", alpha)
        self.extra_passes = 1 / self.k
        self.counts: dict[int, int] = {}
        self.last_steps: dict[int, int] = {}
        self.directions: dict[int, dict[str, Tensor]] = {}

    def begin(self, parameters: Mapping[str, Tensor], t: int, total_steps: int | None, seed: int) -> None:
        """Remember t, by which a step is known that begins again."""
        self.t = t

    def perturbs(self, micro_batch: int) -> bool:
        """Whether this sharp step of the micro-batch is one of SAM's."""
        return self.before(micro_batch) % self.k == 0

    def before(self, micro_batch: int) -> int:
        """How many sharp steps the micro-batch had before step t."""
        return self.counts.get(micro_batch, 0) - (self.last_steps.get(micro_batch) == self.t)

    def combine(self, sharp: Vector, clean: Vector, micro_batch: int) -> None:
        """At a step of SAM's store g_v and leave g_s; else add α ‖g‖/‖g_v‖ g_v to g."""
        directions = self.directions.setdefault(micro_batch, {})
        # The direction of a parameter that is new, or had no gradient yet, or was frozen, starts at zero.
        directions.update(
            (name, torch.zeros_like(g))
            for name, g in zip(clean.names, clean, strict=True)
            if name not in directions or directions[name].shape != g.shape
        )
        old = [directions[name] for name in clean.names]
        if self.perturbs(micro_batch):
            along = sharp.dot(clean) / (clean.norm() + EPSILON).square()
            new = Vector(torch._foreach_mul(clean, -along), clean.indices, clean.names)
            torch._foreach_add_(new, sharp)
            # A g_v that is not finite, from an overflow under a loss scaler, would spoil the next k steps.
            finite = new.norm().isfinite()
            directions.update(
                zip(clean.names, [torch.where(finite, *pair) for pair in zip(new, old, strict=True)], strict=True)
            )
        else:
            direction = Vector(old, clean.indices, clean.names)
            scale = self.alpha * clean.norm() / (direction.norm() + EPSILON)
            torch._foreach_add_(sharp, torch._foreach_mul(direction, scale))
        self.counts[micro_batch], self.last_steps[micro_batch] = self.before(micro_batch) + 1, self.t

    def state_dict(self) -> dict[str, Any]:
        """By micro-batch: ``counts``, of sharp steps, ``last_steps``, the t of the last one, and ``directions``, g_v.

        A g_v is a tensor for each parameter, by its name.
        """
        directions = {i: dict(g_v) for i, g_v in self.directions.items()}
        return {"counts": dict(self.counts), "last_steps": dict(self.last_steps), "directions": directions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.counts, self.last_steps = dict(state["counts"]), dict(state["last_steps"])
        self.directions = {i: dict(g_v) for i, g_v in state["directions"].items()}
