"""Schedules p(t): the probability that step t is sharp (Section 3.2, Table 2 and Section B.1).

Every factory returns a `Schedule`, which is called as ``schedule(t, total_steps)`` with t = 0, ..., total_steps - 1.
The mean of p over the steps is Δη, the expected number of extra passes a step (eq. 4). Each factory states the limit of
that mean for large T; `Schedule.mean` gives the exact one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from rst.checks import in_unit_interval, positive_integer

__all__ = [
    "Schedule",
    "always",
    "constant",
    "cosine_down",
    "cosine_up",
    "linear",
    "linear_through",
    "never",
    "one_minus_sine",
    "periodic",
    "piecewise",
    "quarter_cosine",
    "quarter_sine",
    "sine",
    "tail",
]


@dataclass(frozen=True)
class Schedule:
    """p(t), under a name that states everything p depends on, so that schedules of equal names are equal.

    Args:
        name: for example ``constant(p=0.5)``, with every digit of the parameters.
        rule: (t, total_steps) -> p in [0, 1].
        time_invariant: whether p is the same at every t, so that no total_steps is needed.
    """

    name: str
    rule: Callable[[int, int], float] = field(repr=False, compare=False)
    time_invariant: bool = False

    def __call__(self, t: int, total_steps: int | None = None) -> float:
        """p(t), in [0, 1]. Raises ValueError where p changes with t and total_steps is missing."""
        if total_steps is None:
            if not self.time_invariant:
                raise ValueError(f"schedule {self.name} changes over the training: give total_steps.")
            total_steps = 1
        return self.rule(t, total_steps)

    def mean(self, total_steps: int | None = None) -> float:
        """Δη = (1/T) Σ_{t<T} p(t) (eq. 4), in [0, 1]: the mean over the T steps, not its limit for large T."""
        return self(0, total_steps) if self.time_invariant or total_steps is None else _mean(self, total_steps)

    def __str__(self) -> str:
        return self.name


@cache
def _mean(schedule: Schedule, total_steps: int) -> float:
    return math.fsum(schedule(t, total_steps) for t in range(total_steps)) / total_steps


# The families of the paper --------------------------------------------------------------------------------------------


def never() -> Schedule:
    """p = 0: plain SGD. Δη = 0."""
    return constant(0.0)


def always() -> Schedule:
    """p = 1: SAM, or GNR where gamma_ratio is not 1. Δη = 1."""
    return constant(1.0)


def constant(p: float) -> Schedule:
    """p(t) = p, in [0, 1] (Table 2; Section 3.3 recommends this family). Δη = p."""
    p = in_unit_interval("p", p)
    return Schedule(f"constant(p={p!r})", lambda t, total_steps: p, time_invariant=True)


def piecewise(a: float, b: float) -> Schedule:
    """p(t) = a in the first b T steps, then 1 - a; a and b in [0, 1] (Table 2). Δη = 1 + 2ab - a - b.

    Group 1 of Section 3.2 is a = 0 (SGD, then SAM), group 2 is a = 1 (SAM, then SGD), group 3 is b = 1/2.
    """
    a, b = in_unit_interval("a", a), in_unit_interval("b", b)
    if a == 0.5:
        return constant(0.5)
    return Schedule(f"piecewise(a={a!r},b={b!r})", lambda t, total_steps: a if t / total_steps < b else 1 - a)


def linear(m: float) -> Schedule:
    """The rising line through (T/2, m), with m in [0, 1] (Section 3.2, linear group 1). Δη = m.

    Its second point is (0, 0) for m <= 1/2, and else (T, 1).
    """
    m = in_unit_interval("m", m)
    start, slope = (0.0, 2 * m) if m <= 0.5 else (2 * m - 1, 2 * (1 - m))
    return _by_progress(f"linear(m={m!r})", lambda u: start + slope * u)


def linear_through(b: float) -> Schedule:
    """The line through (0, b) and (T/2, 1/2), with b in [0, 1] (Section 3.2, linear group 2). Δη = 1/2."""
    b = in_unit_interval("b", b)
    if b == 0.5:
        return constant(0.5)
    return _by_progress(f"linear_through(b={b!r})", lambda u: b + (1 - 2 * b) * u)


def cosine_down() -> Schedule:
    """p(t) = ½ + ½ cos(πt/T), from SAM to SGD (p_cos1 of eq. 31). Δη = 1/2."""
    return _by_progress("cosine_down", lambda u: 0.5 + 0.5 * math.cos(math.pi * u))


def cosine_up() -> Schedule:
    """p(t) = ½ - ½ cos(πt/T), from SGD to SAM (p_cos2 of eq. 31). Δη = 1/2."""
    return _by_progress("cosine_up", lambda u: 0.5 - 0.5 * math.cos(math.pi * u))


def sine() -> Schedule:
    """p(t) = sin(πt/T) (p_sin1 of eq. 31). Δη = 2/π."""
    return _by_progress("sine", lambda u: math.sin(math.pi * u))


def one_minus_sine() -> Schedule:
    """p(t) = 1 - sin(πt/T) (p_sin2 of eq. 31). Δη = 1 - 2/π; Table 6 prints 2/π."""
    return _by_progress("one_minus_sine", lambda u: 1 - math.sin(math.pi * u))


# Families that the paper does not have --------------------------------------------------------------------------------


def quarter_sine() -> Schedule:
    """p(t) = sin(πt/2T), from SGD to SAM; not in the paper. Δη = 2/π.

    Eq. 31 does not explain the Δη, times and errors that Table 6 reports for its two sines; this schedule together with
    `quarter_cosine` does.
    """
    return _by_progress("quarter_sine", lambda u: math.sin(math.pi * u / 2))


def quarter_cosine() -> Schedule:
    """p(t) = cos(πt/2T), from SAM to SGD; not in the paper (see `quarter_sine`). Δη = 2/π."""
    return _by_progress("quarter_cosine", lambda u: math.cos(math.pi * u / 2))


def periodic(k: int) -> Schedule:
    """p(t) = 1 at every k-th step, t = k - 1, 2k - 1, ..., and else 0; k >= 1; not in the paper. Δη = ⌊T/k⌋ / T."""
    k = positive_integer("k", k)
    return Schedule(f"periodic(k={k})", lambda t, total_steps: float(t % k == k - 1))


def tail(fraction: float) -> Schedule:
    """p(t) = 1 in the last fraction of the steps, in [0, 1], and else 0. Δη = fraction.

    This is `piecewise` with a = 0 (group 1), by its cost in place of b.
    """
    fraction = in_unit_interval("fraction", fraction)
    return piecewise(0.0, round(1 - fraction, 12))


def _by_progress(name: str, rule: Callable[[float], float]) -> Schedule:
    """A schedule whose p depends on t only through u = t/T, in [0, 1)."""
    return Schedule(name, lambda t, total_steps: rule(t / total_steps))
