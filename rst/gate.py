"""The gate X_t, which decides whether step t is sharp.

`Gate` draws X_t ~ Bernoulli(p(t)) before the training (Section 2.2, eq. 2); `AdaptiveGate` decides after the clean pass
of step t, by AE-SAM's rule. `make_gate` makes the one that a schedule asks for.
"""

import hashlib
import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from inspect import isroutine, signature
from typing import Any, ClassVar

import torch
from torch import Tensor

from rst import schedules
from rst.checks import integer, positive_integer
from rst.schedules import AESAM, Schedule
from rst.streams import stream

ScheduleLike = Schedule | Callable[[int, Any], float]
"""p(t) as a schedule, or as a callable (t, total_steps) -> p in [0, 1]."""


def make_gate(schedule: ScheduleLike | AESAM, total_steps: int | None, seed: int) -> "Gate | AdaptiveGate":
    """The gate of a schedule. Both classes answer to the same names; arguments and errors are theirs."""
    if isinstance(schedule, AESAM):
        return AdaptiveGate(schedule, total_steps, seed)
    return Gate(schedule, total_steps, seed)


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
        ValueError: a schedule that is neither a `Schedule` nor a callable; p(t) outside [0, 1] at some t; a total_steps
            that is wrong, or missing where p(t) changes; a seed that is no integer.

    Warns where every drawn gate is open, or every one closed, although 0 < mean p < 1.
    """

    def __init__(self, schedule: ScheduleLike, total_steps: int | None, seed: int) -> None:
        _check_schedule(schedule)
        self.schedule, self.seed = schedule, integer("seed", seed)
        self.total_steps = None if total_steps is None else positive_integer("total_steps", total_steps)
        if self.total_steps is None:
            if not (isinstance(schedule, Schedule) and schedule.time_invariant):
                raise ValueError(f"schedule {schedule} needs total_steps, the number of optimizer steps.")
            self.mean = _probability(schedule, 0, None)
            return
        p = _probabilities(schedule, self.total_steps)
        self.mean = math.fsum(p.tolist()) / self.total_steps
        self._steps = _uniforms(self.seed, self.total_steps) < p
        self._is_open: list[bool] = self._steps.tolist()  # A step reads it without an operation of torch.
        share = self.share(self.total_steps)
        if share in (0, 1) and share != self.mean:
            warnings.warn(
                f"the gate of seed {seed} is {'open' if share else 'closed'} at every one of the {total_steps} steps, "
                f"although the mean p of schedule {schedule} is {self.mean:.3g}: train for longer or choose another "
                "seed.",
                stacklevel=4,  # the line that makes the `RST`, which calls `make_gate`
            )

    @property
    def may_open(self) -> bool:
        """Whether any step may be sharp."""
        return self.mean > 0

    @property
    def ratio(self) -> float:
        """1 / (mean of p(t)), the c = γ/ρ that keeps SAM's regularisation (eq. 8). Raises ValueError where p is 0."""
        if self.mean == 0:
            raise ValueError(
                f"gamma_ratio 'auto' is 1 / (mean of p(t)), which is 0 for {self.schedule}: give a number."
            )
        return 1 / self.mean

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
        _check_step(t, self.total_steps)
        return self._is_open[t]

    def decide(self, t: int, squared_norm: float) -> bool:
        """X_t, which the norm of the clean gradient does not change."""
        return self(t)

    def share(self, t: int) -> float:
        """Share of sharp steps, in [0, 1]: of all total_steps steps, or without total_steps of the first t."""
        if self.total_steps is not None:
            return self._steps.double().mean().item()
        return (_uniforms(self.seed, t) < self.mean).double().mean().item() if t else 0.0

    def state_dict(self) -> dict[str, Any]:
        """What the gate is made of, as plain values: the schedule by its name and by what it drew."""
        if self.total_steps is None:
            return {**_arguments(self), "p": self.mean}
        return {**_arguments(self), "steps": hashlib.sha256(bytes(self._steps.tolist())).hexdigest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the state is that of an equal gate. Raises ValueError with what differs.

        With a constant schedule X_t does not depend on total_steps, so that a training may go on for longer.
        """
        own, saved_steps = self, state.get("total_steps")
        if isinstance(self.schedule, Schedule) and self.schedule.time_invariant and saved_steps != self.total_steps:
            own = Gate(self.schedule, saved_steps, self.seed)
        _check_arguments(state, own)
        if state != own.state_dict():
            raise ValueError(
                f"the state is that of another schedule with the name {state['schedule']}, which gives other sharp "
                "steps: use the schedule of the saved training."
            )


class AdaptiveGate:
    """X_t = 1 where n_t = ‖g_t‖² is large against its moving mean and variance: AE-SAM's rule, see `schedules.ae_sam`.

    X_t is known after the clean pass of step t, so that nothing is known of the whole training. It is the same on every
    rank where n_t is.

    Args:
        schedule: the parameters of the rule.
        total_steps: T >= 1, the number of optimizer steps.
        seed: any integer, which takes no part in the decision.

    Attributes:
        may_open: True: any step may be sharp.

    Raises:
        ValueError: a total_steps that is wrong or missing; a seed that is no integer.
    """

    may_open: ClassVar[bool] = True

    def __init__(self, schedule: AESAM, total_steps: int | None, seed: int) -> None:
        if total_steps is None:
            raise ValueError(f"schedule {schedule} needs total_steps, the number of optimizer steps.")
        self.schedule, self.seed = schedule, integer("seed", seed)
        self.total_steps = positive_integer("total_steps", total_steps)
        self._step = -1  # the last one that was decided
        self._before: tuple[float, float] | None = None  # μ and σ before it
        self._after: tuple[float, float] | None = None  # μ and σ with its n_t

    def __call__(self, t: int) -> None:
        """None: X_t is not known before the clean pass. Raises ValueError from total_steps on."""
        _check_step(t, self.total_steps)

    def decide(self, t: int, squared_norm: float) -> bool:
        """X_t, from n_t = ‖g_t‖² of the clean gradient without a loss scale. Counts n_t in the mean and the variance.

        A step that is decided again, as after an error in its perturbed pass, counts once, with its last n_t. One that
        is not finite is not counted, and its step is plain. Raises ValueError from total_steps on.
        """
        _check_step(t, self.total_steps)
        if t != self._step:
            self._step, self._before = t, self._after
        if not math.isfinite(squared_norm):
            self._after = self._before
            return False
        # In this form a norm that stays the same is its mean to the bit, and no square overflows or underflows.
        delta = self.schedule.delta
        mu, sigma = self._before or (squared_norm, 0.0)
        excess = delta * (squared_norm - mu)  # n_t - μ_t
        sigma = math.hypot(math.sqrt(delta) * sigma, math.sqrt(1 - delta) * excess)
        self._after = squared_norm - excess, sigma
        return excess >= self.schedule.c(t, self.total_steps) * sigma

    @property
    def steps(self) -> Tensor:
        """Raises ValueError: see `Gate.steps`."""
        raise self._not_known("the gate of the whole training")

    @property
    def ratio(self) -> float:
        """Raises ValueError: see `Gate.ratio`."""
        raise self._not_known("gamma_ratio 'auto', which is 1 / (mean of p(t)),")

    @property
    def mean(self) -> float:
        """Raises ValueError: see `Gate`."""
        raise self._not_known("the mean of p(t)")

    def share(self, t: int) -> float:
        """Raises ValueError: see `Gate.share`."""
        raise self._not_known("the share of sharp steps")

    def _not_known(self, what: str) -> ValueError:
        return ValueError(
            f"schedule {self.schedule} decides after the clean pass, so {what} is not known before the training: "
            "count the passes instead, or choose a schedule with a p(t)."
        )

    def state_dict(self) -> dict[str, Any]:
        """What the gate is made of and its statistics, as plain values."""
        return {**_arguments(self), "step": self._step, "before": self._before, "after": self._after}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned. Raises ValueError where the gate is made of other things."""
        _check_arguments(state, self)
        self._step, self._before, self._after = state["step"], state["before"], state["after"]


def _check_step(t: int, total_steps: int) -> None:
    if t >= total_steps:
        raise ValueError(f"step {t} is past the end of the training: total_steps is {total_steps}.")


def _arguments(gate: Gate | AdaptiveGate) -> dict[str, Any]:
    """The arguments of a gate as plain values. A function has no name that a new process would give it again."""
    schedule = gate.schedule
    name = schedule.name if isinstance(schedule, (Schedule, AESAM)) else "a callable"
    return {"schedule": name, "seed": gate.seed, "total_steps": gate.total_steps}


def _check_arguments(state: dict[str, Any], gate: Gate | AdaptiveGate) -> None:
    for name, own in _arguments(gate).items():
        if state.get(name) != own:
            raise ValueError(
                f"the state is that of a gate with {name} {state.get(name)}, but this gate has {name} {own}: "
                f"use the {name} of the saved training."
            )


def _check_schedule(schedule: object) -> None:
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
def _uniform_block(seed: int, block: int) -> list[float]:
    """u_t of the _BLOCK steps from block * _BLOCK on."""
    return torch.rand(_BLOCK, dtype=torch.float64, generator=stream("gate", seed, block), device="cpu").tolist()


def _uniform(seed: int, t: int) -> float:
    """u_t."""
    return _uniform_block(seed, t // _BLOCK)[t % _BLOCK]


def _uniforms(seed: int, steps: int) -> Tensor:
    """u_t for t < steps: float64 [steps]."""
    u = [u for block in range(-(-steps // _BLOCK)) for u in _uniform_block(seed, block)]
    return torch.tensor(u[:steps], dtype=torch.float64, device="cpu")


def _probabilities(schedule: ScheduleLike, total_steps: int) -> Tensor:
    """p(t) of every step, checked: float64 [total_steps]."""
    p = [_probability(schedule, t, total_steps) for t in range(total_steps)]
    return torch.tensor(p, dtype=torch.float64, device="cpu")


def _probability(schedule: ScheduleLike, t: int, total_steps: int | None) -> float:
    """p(t), checked."""
    value = schedule(t, total_steps)
    try:
        p = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"schedule {schedule} gives p = {value!r} at t = {t}: p must be a number.") from None
    if not 0 <= p <= 1:
        raise ValueError(f"schedule {schedule} gives p = {p:g} at t = {t}: p must lie in [0, 1].")
    return p
