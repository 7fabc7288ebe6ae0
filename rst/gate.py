"""The gate: X_t ~ Bernoulli(p(t)), whether step t is sharp (Section 2.2, eq. 2)."""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from rst.schedules import Schedule
from rst.streams import stream

ScheduleLike = Schedule | Callable[[int, int | None], float]


class Gate:
    """Open at step t where u_t < p(t), with u_t uniform on [0, 1) and a function of (seed, t) alone.

    So it is the same on every rank and after every resume, known before the training, and nested: what is open under
    p stays open under a larger p. ``total_steps`` may be None with a constant schedule. Raises ValueError where p(t)
    leaves [0, 1]; warns where the gate of a whole training never moves though its schedule means it to.
    """

    def __init__(self, schedule: ScheduleLike, total_steps: int | None, seed: int) -> None:
        self.schedule, self.total_steps, self.seed = schedule, total_steps, seed
        if total_steps is None:
            if not (isinstance(schedule, Schedule) and schedule.steady):
                raise ValueError(f"schedule {schedule} needs total_steps, the number of optimizer steps.")
            self.mean = schedule.mean()
            return
        if not (isinstance(total_steps, int) and total_steps >= 1):
            raise ValueError(f"total_steps must be an integer from 1, got {total_steps!r}.")
        p = _probabilities(schedule, total_steps)
        self.mean = math.fsum(p.tolist()) / total_steps
        self._steps = _uniforms(seed, total_steps) < p
        share = self.share(total_steps)
        if share in (0, 1) and share != self.mean:
            warnings.warn(
                f"schedule {schedule} expects {self.mean:.3g} sharp steps a step, but the gate of seed {seed} is "
                f"{'always' if share else 'never'} open in {total_steps} steps.",
                stacklevel=3,
            )

    @property
    def steps(self) -> Tensor:
        """X_t of the whole training: bool [total_steps], on the CPU."""
        if self.total_steps is None:
            raise ValueError("the gate of the whole training needs total_steps.")
        return self._steps

    def __call__(self, t: int) -> bool:
        """X_t."""
        if self.total_steps is None:
            return _uniform(self.seed, t) < self.mean
        if t >= self.total_steps:
            raise ValueError(f"step {t} is past the end of the training: total_steps is {self.total_steps}.")
        return bool(self._steps[t])

    def share(self, t: int) -> float:
        """Share of sharp steps: of the whole training where its length is known, else of the first t steps."""
        if self.total_steps is not None:
            return self._steps.double().mean().item()
        return (_uniforms(self.seed, t) < self.mean).double().mean().item() if t else 0.0


_BLOCK = 1024


@lru_cache(maxsize=8)
def _uniform_block(seed: int, block: int) -> Tensor:
    return torch.rand(_BLOCK, dtype=torch.float64, generator=stream("gate", seed, block))


def _uniform(seed: int, t: int) -> float:
    """u_t, whatever the length of the training."""
    return _uniform_block(seed, t // _BLOCK)[t % _BLOCK].item()


def _uniforms(seed: int, steps: int) -> Tensor:
    """u_t for t < steps."""
    return torch.cat([_uniform_block(seed, block) for block in range(-(-steps // _BLOCK))])[:steps]


def _probabilities(schedule: ScheduleLike, total_steps: int) -> Tensor:
    p = torch.tensor([schedule(t, total_steps) for t in range(total_steps)], dtype=torch.float64)
    outside = ((p < 0) | (p > 1) | p.isnan()).nonzero().flatten().tolist()
    if outside:
        t = outside[0]
        raise ValueError(f"schedule {schedule} gives p = {p[t].item():g} at t = {t}: p must lie in [0, 1].")
    return p
