"""The gate X_t ~ Bernoulli(p(t)), which decides whether step t is sharp (Section 2.2, eq. 2)."""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from rst.checks import positive_integer
from rst.schedules import Schedule
from rst.streams import stream

ScheduleLike = Schedule | Callable[[int, int | None], float]


class Gate:
    """X_t = 1 (the gate is open, the step is sharp) where u_t < p(t), with u_t uniform on [0, 1).

    u_t is a function of (seed, t) alone. So the gate is the same on every rank and after every resume, it is known
    before the training starts, and a step that is sharp under p is sharp under every larger p as well.

    Args:
        schedule: p(t), or any callable (t, total_steps) -> p in [0, 1].
        total_steps: T >= 1, the number of optimizer steps; None is allowed with a constant schedule.
        seed: any integer.

    Raises:
        ValueError: p(t) outside [0, 1] at some t; a total_steps that is wrong, or missing where p(t) changes.

    Warns where every drawn gate is open, or every one closed, although 0 < mean p < 1.
    """

    def __init__(self, schedule: ScheduleLike, total_steps: int | None, seed: int) -> None:
        self.schedule, self.total_steps, self.seed = schedule, total_steps, seed
        if total_steps is None:
            if not (isinstance(schedule, Schedule) and schedule.time_invariant):
                raise ValueError(f"schedule {schedule} needs total_steps, the number of optimizer steps.")
            self.mean = schedule.mean()
            return
        p = _probabilities(schedule, positive_integer("total_steps", total_steps))
        self.mean = math.fsum(p.tolist()) / total_steps
        self._steps = _uniforms(seed, total_steps) < p
        share = self.share(total_steps)
        if share in (0, 1) and share != self.mean:
            warnings.warn(
                f"the gate of seed {seed} is {'open' if share else 'closed'} at every one of the {total_steps} steps, "
                f"although the mean p of schedule {schedule} is {self.mean:.3g}: train for longer or choose another "
                "seed.",
                stacklevel=3,
            )

    @property
    def steps(self) -> Tensor:
        """X_t of every step: bool [total_steps], on the CPU. Raises ValueError without total_steps."""
        if self.total_steps is None:
            raise ValueError("the gate of the whole training needs total_steps.")
        return self._steps

    def __call__(self, t: int) -> bool:
        """X_t, for 0 <= t < total_steps. Raises ValueError from total_steps on."""
        if self.total_steps is None:
            return _uniform(self.seed, t) < self.mean
        if t >= self.total_steps:
            raise ValueError(f"step {t} is past the end of the training: total_steps is {self.total_steps}.")
        return bool(self._steps[t])

    def share(self, t: int) -> float:
        """Share of sharp steps, in [0, 1]: of all total_steps steps, or without total_steps of the first t."""
        if self.total_steps is not None:
            return self._steps.double().mean().item()
        return (_uniforms(self.seed, t) < self.mean).double().mean().item() if t else 0.0


_BLOCK = 1024
"""u_t is drawn for this many steps at a time, from a stream of its own, so that any u_t is cheap without the others."""


@lru_cache(maxsize=8)
def _uniform_block(seed: int, block: int) -> Tensor:
    """u_t of the steps from block * _BLOCK on: float64 [_BLOCK]."""
    return torch.rand(_BLOCK, dtype=torch.float64, generator=stream("gate", seed, block))


def _uniform(seed: int, t: int) -> float:
    """u_t."""
    return _uniform_block(seed, t // _BLOCK)[t % _BLOCK].item()


def _uniforms(seed: int, steps: int) -> Tensor:
    """u_t for t < steps: float64 [steps]."""
    return torch.cat([_uniform_block(seed, block) for block in range(-(-steps // _BLOCK))])[:steps]


def _probabilities(schedule: ScheduleLike, total_steps: int) -> Tensor:
    """p(t) of every step, checked: float64 [total_steps]."""
    p = torch.tensor([schedule(t, total_steps) for t in range(total_steps)], dtype=torch.float64)
    outside = ((p < 0) | (p > 1) | p.isnan()).nonzero().flatten().tolist()
    if outside:
        t = outside[0]
        raise ValueError(f"schedule {schedule} gives p = {p[t].item():g} at t = {t}: p must lie in [0, 1].")
    return p
