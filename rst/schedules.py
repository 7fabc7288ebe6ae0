"""Schedules: p(t), the probability that step t is sharp (Sections 3.2 and B.1).

Every factory returns a `Schedule`, called as ``schedule(t, total_steps)`` with t = 0, ..., total_steps - 1. Its mean
over the steps is the expected extra cost Δη of the training, in passes a step (eq. 4).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from rst.checks import in_unit_interval

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
    """p(t) under a name that says all that p depends on: equal names are equal schedules.

    A `steady` schedule is the same at every t, so it needs no ``total_steps``.
    """

    name: str
    rule: Callable[[int, int], float] = field(repr=False, compare=False)
    steady: bool = False

    def __call__(self, t: int, total_steps: int | None = None) -> float:
        """p at step t, in [0, 1]."""
        if total_steps is None:
            if not self.steady:
                raise ValueError(f"schedule {self.name} changes over the training: give total_steps.")
            total_steps = 1
        return self.rule(t, total_steps)

    def mean(self, total_steps: int | None = None) -> float:
        """Δη = (1/T) Σ_{t<T} p(t) (eq. 4): the exact mean over the T steps, not its limit for large T."""
        return self(0, total_steps) if self.steady or total_steps is None else _mean(self, total_steps)

    def __str__(self) -> str:
        return self.name


@cache
def _mean(schedule: Schedule, total_steps: int) -> float:
    return math.fsum(schedule(t, total_steps) for t in range(total_steps)) / total_steps


def never() -> Schedule:
    """p = 0: plain SGD."""
    return constant(0.0)


def always() -> Schedule:
    """p = 1: SAM, or GNR where gamma_ratio is not 1."""
    return constant(1.0)


def constant(p: float) -> Schedule:
    """p(t) = p (Table 2; the schedule that the paper recommends). Δη = p."""
    p = in_unit_interval("p", p)
    return Schedule(f"constant(p={p!r})", lambda t, total_steps: p, steady=True)


def piecewise(a: float, b: float) -> Schedule:
    """p = a for t < b T, then 1 - a (Table 2). Δη = 1 + 2ab - a - b.

    Group 1 of the paper is a = 0 (SGD, then SAM), group 2 a = 1 (SAM, then SGD), group 3 b = 1/2.
    """
    a, b = in_unit_interval("a", a), in_unit_interval("b", b)
    if a == 0.5:
        return constant(0.5)
    return Schedule(f"piecewise(a={a!r},b={b!r})", lambda t, total_steps: a if t / total_steps < b else 1 - a)


def linear(m: float) -> Schedule:
    """The rising line through (T/2, m) and, for m <= 1/2, (0, 0), else (T, 1) (linear group 1). Δη = m."""
    m = in_unit_interval("m", m)
    start, slope = (0.0, 2 * m) if m <= 0.5 else (2 * m - 1, 2 * (1 - m))
    return _wave(f"linear(m={m!r})", lambda u: start + slope * u)


def linear_through(b: float) -> Schedule:
    """The line through (0, b) and (T/2, 1/2) (linear group 2). Δη = 1/2."""
    b = in_unit_interval("b", b)
    if b == 0.5:
        return constant(0.5)
    return _wave(f"linear_through(b={b!r})", lambda u: b + (1 - 2 * b) * u)


def cosine_down() -> Schedule:
    """½ + ½ cos πt/T (p_cos1 of eq. 31). Δη = 1/2."""
    return _wave("cosine_down", lambda u: 0.5 + 0.5 * math.cos(math.pi * u))


def cosine_up() -> Schedule:
    """½ - ½ cos πt/T (p_cos2 of eq. 31). Δη = 1/2."""
    return _wave("cosine_up", lambda u: 0.5 - 0.5 * math.cos(math.pi * u))


def sine() -> Schedule:
    """Sin πt/T (p_sin1 of eq. 31). Δη = 2/π."""
    return _wave("sine", lambda u: math.sin(math.pi * u))


def one_minus_sine() -> Schedule:
    """1 - sin πt/T (p_sin2 of eq. 31). Δη = 1 - 2/π, where Table 6 prints 2/π."""
    return _wave("one_minus_sine", lambda u: 1 - math.sin(math.pi * u))


def quarter_sine() -> Schedule:
    """Sin πt/2T, rising from SGD to SAM; not in the paper. Δη = 2/π.

    With `quarter_cosine` it explains what Table 6 reports for its two sines, which eq. 31 does not.
    """
    return _wave("quarter_sine", lambda u: math.sin(math.pi * u / 2))


def quarter_cosine() -> Schedule:
    """Cos πt/2T, falling from SAM to SGD; not in the paper. Δη = 2/π."""
    return _wave("quarter_cosine", lambda u: math.cos(math.pi * u / 2))


def periodic(k: int) -> Schedule:
    """Every k-th step is sharp, without chance; not in the paper. Δη = ⌊T/k⌋ / T."""
    if not (isinstance(k, int) and not isinstance(k, bool) and k >= 1):
        raise ValueError(f"k must be an integer from 1, got {k!r}.")
    return Schedule(f"periodic(k={k})", lambda t, total_steps: float(t % k == k - 1))


def tail(fraction: float) -> Schedule:
    """The last fraction of the steps is sharp, none before it: `piecewise` group 1 by its cost. Δη = fraction."""
    fraction = in_unit_interval("fraction", fraction)
    return piecewise(0.0, round(1 - fraction, 12))


def _wave(name: str, rule: Callable[[float], float]) -> Schedule:
    """A schedule in the elapsed fraction u = t/T of the training."""
    return Schedule(name, lambda t, total_steps: rule(t / total_steps))
