"""The gate X_t ~ Bernoulli(p(t)), which decides whether step t is sharp (Section 2.2, eq. 2)."""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from inspect import isroutine, signature

import torch
from torch import Tensor

from rst import schedules
from rst.checks import integer, positive_integer
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

    Attributes:
        mean: the mean of p(t), in [0, 1].

    Raises:
        ValueError: a schedule that is neither of both; p(t) outside [0, 1] at some t; a total_steps that is wrong, or
            missing where p(t) changes; a seed that is no integer.

    Warns where every drawn gate is open, or every one closed, although 0 < mean p < 1.
    """

    def __init__(self, schedule: ScheduleLike, total_steps: int | None, seed: int) -> None:
        check_schedule(schedule)
        self.schedule, self.seed = schedule, integer("seed", seed)
        self.total_steps = None if total_steps is None else positive_integer("total_steps", total_steps)
        if self.total_steps is None:
            if not (isinstance(schedule, Schedule) and schedule.time_invariant):
                raise ValueError(f"schedule {schedule} needs total_steps, the number of optimizer steps.")
            self.mean = schedule.mean()
            return
        p = _probabilities(schedule, self.total_steps)
        self.mean = math.fsum(p.tolist()) / self.total_steps
        self._steps = _uniforms(self.seed, self.total_steps) < p
        share = self.share(self.total_steps)
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


def check_schedule(schedule: object) -> None:
    """Raise ValueError, with what to write instead, for what is no schedule: a number, a name, a class, a factory."""
    if isinstance(schedule, Schedule):
        return
    factory = isroutine(schedule) and schedule.__module__ == schedules.__name__
    if callable(schedule) and not isinstance(schedule, type) and not factory:
        return
    raise ValueError(
        f"schedule must be one of rst.schedules or a callable (t, total_steps) -> p in [0, 1], got {schedule!r}: "
        f"write rst.schedules.{_instead_of(schedule)}."
    )


def _instead_of(schedule: object) -> str:
    if isinstance(schedule, (int, float)) and 0 <= schedule <= 1:
        return f"constant({float(schedule)})"
    name = schedule if isinstance(schedule, str) else getattr(schedule, "__name__", "").lower()
    if name not in schedules.__all__:
        return "constant(0.5)"
    return f"{name}({', '.join(signature(getattr(schedules, name)).parameters)})"


_BLOCK = 1024
"""u_t is drawn for this many steps at a time, from a stream of its own, so that any u_t is cheap without the others."""

# All tensors here are made on the CPU by name: a default device that the user has set does not move the gate.


@lru_cache(maxsize=8)
def _uniform_block(seed: int, block: int) -> Tensor:
    """u_t of the steps from block * _BLOCK on: float64 [_BLOCK]."""
    return torch.rand(_BLOCK, dtype=torch.float64, generator=stream("gate", seed, block), device="cpu")


def _uniform(seed: int, t: int) -> float:
    """u_t."""
    return _uniform_block(seed, t // _BLOCK)[t % _BLOCK].item()


def _uniforms(seed: int, steps: int) -> Tensor:
    """u_t for t < steps: float64 [steps]."""
    return torch.cat([_uniform_block(seed, block) for block in range(-(-steps // _BLOCK))])[:steps]


def _probabilities(schedule: ScheduleLike, total_steps: int) -> Tensor:
    """p(t) of every step, checked: float64 [total_steps]."""
    p = [schedule(t, total_steps) for t in range(total_steps)]
    for t, value in enumerate(p):
        try:
            inside = 0 <= float(value) <= 1
        except (TypeError, ValueError):
            raise ValueError(f"schedule {schedule} gives p = {value!r} at t = {t}: p must be a number.") from None
        if not inside:
            raise ValueError(f"schedule {schedule} gives p = {float(value):g} at t = {t}: p must lie in [0, 1].")
    return torch.tensor([float(value) for value in p], dtype=torch.float64, device="cpu")
