"""Schedules p(t): the probability that step t is sharp (Section 3.2, Table 2 and Section B.1).

Every factory returns a `Schedule`, which is called as ``schedule(t, total_steps)`` with t = 0, ..., total_steps - 1; t
and total_steps, T for short, count optimizer steps. Without total_steps only a constant schedule can be called. The
mean of p over the steps is Δη, the expected number of extra passes a step (eq. 4). Each factory states the limit of
that mean for large T; `Schedule.mean` gives the exact one. `ae_sam` is the exception: it has no p(t).

A schedule is a plain value: it can be pickled and hashed, and two schedules of one family are equal where their
parameters are.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from rst.checks import finite, in_unit_interval, positive_integer

__all__ = [
    "Schedule",
    "ae_sam",
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


class Schedule(ABC):
    """p(t). A schedule of your own is a subclass with `name` and `rule`, best a frozen dataclass.

    Example:
        >>> class FirstHalf(rst.schedules.Schedule):
        ...     name = "first_half"
        ...     def rule(self, t, total_steps):
        ...         return float(t < total_steps / 2)
        >>> FirstHalf()(60, total_steps=100), FirstHalf().mean(100)
        (0.0, 0.5)
    """

    time_invariant: ClassVar[bool] = False
    """Whether p is the same at every t, so that no total_steps is needed."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Family and parameters with every digit, such as ``constant(p=0.5)``. Runs are told apart by it."""

    @abstractmethod
    def rule(self, t: int, total_steps: int) -> float:
        """p(t), in [0, 1], for 0 <= t < total_steps."""

    def __call__(self, t: int, total_steps: int | None = None) -> float:
        """p(t), in [0, 1]. Raises ValueError where p changes with t and total_steps is missing."""
        if total_steps is None:
            if not self.time_invariant:
                raise ValueError(f"schedule {self.name} changes over the training: give total_steps.")
            total_steps = 1
        return self.rule(t, total_steps)

    def mean(self, total_steps: int | None = None) -> float:
        """Δη = (1/T) Σ_{t<T} p(t) (eq. 4), in [0, 1]: the mean over the T steps, not its limit for large T.

        Raises ValueError where p changes with t and total_steps is missing.
        """
        if self.time_invariant or total_steps is None:
            return self(0, total_steps)
        return math.fsum(self(t, total_steps) for t in range(total_steps)) / total_steps

    def __str__(self) -> str:
        return self.name


# The values -----------------------------------------------------------------------------------------------------------


class _Value(Schedule):
    """A schedule that never changes, so that its mean is computed once for all that are equal to it."""

    def mean(self, total_steps: int | None = None) -> float:
        return _mean(self, total_steps)


_mean = cache(Schedule.mean)


@dataclass(frozen=True)
class Constant(_Value):
    """See `constant`."""

    p: float
    time_invariant: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"constant(p={self.p!r})"

    def rule(self, t: int, total_steps: int) -> float:
        return self.p


@dataclass(frozen=True)
class Piecewise(_Value):
    """See `piecewise`."""

    a: float
    b: float

    @property
    def name(self) -> str:
        return f"piecewise(a={self.a!r},b={self.b!r})"

    def rule(self, t: int, total_steps: int) -> float:
        return self.a if t / total_steps < self.b else 1 - self.a


@dataclass(frozen=True)
class Linear(_Value):
    """See `linear`."""

    m: float

    @property
    def name(self) -> str:
        return f"linear(m={self.m!r})"

    def rule(self, t: int, total_steps: int) -> float:
        start, slope = (0.0, 2 * self.m) if self.m <= 0.5 else (2 * self.m - 1, 2 * (1 - self.m))
        return start + slope * (t / total_steps)


@dataclass(frozen=True)
class LinearThrough(_Value):
    """See `linear_through`."""

    b: float

    @property
    def name(self) -> str:
        return f"linear_through(b={self.b!r})"

    def rule(self, t: int, total_steps: int) -> float:
        return self.b + (1 - 2 * self.b) * (t / total_steps)


@dataclass(frozen=True)
class Wave(_Value):
    """The schedules without parameters, by their names: see `cosine_down` and those that follow it."""

    shape: str

    @property
    def name(self) -> str:
        return self.shape

    def rule(self, t: int, total_steps: int) -> float:
        return _SHAPES[self.shape](t / total_steps)


_SHAPES = {
    "cosine_down": lambda u: 0.5 + 0.5 * math.cos(math.pi * u),
    "cosine_up": lambda u: 0.5 - 0.5 * math.cos(math.pi * u),
    "sine": lambda u: math.sin(math.pi * u),
    "one_minus_sine": lambda u: 1 - math.sin(math.pi * u),
    "quarter_sine": lambda u: math.sin(math.pi * u / 2),
    "quarter_cosine": lambda u: math.cos(math.pi * u / 2),
}
"""p as a function of u = t/T, in [0, 1)."""


@dataclass(frozen=True)
class Periodic(_Value):
    """See `periodic`."""

    k: int

    @property
    def name(self) -> str:
        return f"periodic(k={self.k})"

    def rule(self, t: int, total_steps: int) -> float:
        return float(t % self.k == self.k - 1)


@dataclass(frozen=True)
class AESAM:
    """The rule of `ae_sam`, as a value."""

    lambda_1: float
    lambda_2: float
    delta: float

    @property
    def name(self) -> str:
        """The rule and its parameters with every digit. Runs are told apart by it."""
        return f"ae_sam(lambda_1={self.lambda_1!r},lambda_2={self.lambda_2!r},delta={self.delta!r})"

    def c(self, t: int, total_steps: int) -> float:
        """c_t, by how many standard deviations n_t must lie above its mean."""
        u = t / total_steps
        return u * self.lambda_1 + (1 - u) * self.lambda_2

    def __str__(self) -> str:
        return self.name


# The families of the paper --------------------------------------------------------------------------------------------


def never() -> Schedule:
    """p = 0: plain SGD (Table 5). Δη = 0.

    Example:
        >>> rst.schedules.never().mean()
        0.0
    """
    return constant(0.0)


def always() -> Schedule:
    """p = 1: SAM, or GNR where gamma_ratio is not 1 (Table 5). Δη = 1.

    Example:
        >>> rst.schedules.always().mean()
        1.0
    """
    return constant(1.0)


def constant(p: float) -> Schedule:
    """p(t) = p, in [0, 1], else ValueError (Table 2; Section 3.3 recommends this family). Δη = p.

    Example:
        >>> schedule = rst.schedules.constant(0.5)
        >>> schedule(t=7), schedule.mean()
        (0.5, 0.5)
    """
    return Constant(in_unit_interval("p", p))


def piecewise(a: float, b: float) -> Schedule:
    """p(t) = a in the first b T steps, then 1 - a; a and b in [0, 1], else ValueError (Table 2). Δη = 1 + 2ab - a - b.

    Group 1 of Section 3.2 is a = 0 (SGD, then SAM), group 2 is a = 1 (SAM, then SGD), group 3 is b = 1/2.

    Example:
        >>> schedule = rst.schedules.piecewise(a=0, b=0.75)
        >>> [schedule(t, total_steps=4) for t in range(4)]
        [0.0, 0.0, 0.0, 1.0]
    """
    a, b = in_unit_interval("a", a), in_unit_interval("b", b)
    return Constant(0.5) if a == 0.5 else Piecewise(a, b)


def linear(m: float) -> Schedule:
    """The rising line through (T/2, m), with m in [0, 1], else ValueError (Section 3.2, linear group 1). Δη = m.

    Its second point is (0, 0) for m <= 1/2, and else (T, 1).

    Example:
        >>> schedule = rst.schedules.linear(0.75)
        >>> [schedule(t, total_steps=4) for t in range(4)]
        [0.5, 0.625, 0.75, 0.875]
    """
    return Linear(in_unit_interval("m", m))


def linear_through(b: float) -> Schedule:
    """The line through (0, b) and (T/2, ½); b in [0, 1], else ValueError (Section 3.2, linear group 2). Δη = 1/2.

    Example:
        >>> schedule = rst.schedules.linear_through(1)
        >>> [schedule(t, total_steps=4) for t in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    b = in_unit_interval("b", b)
    return Constant(0.5) if b == 0.5 else LinearThrough(b)


def cosine_down() -> Schedule:
    """p(t) = ½ + ½ cos(πt/T), from SAM to SGD (p_cos1 of eq. 31). Δη = 1/2.

    Example:
        >>> schedule = rst.schedules.cosine_down()
        >>> [round(schedule(t, total_steps=4), 2) for t in range(4)]
        [1.0, 0.85, 0.5, 0.15]
    """
    return Wave("cosine_down")


def cosine_up() -> Schedule:
    """p(t) = ½ - ½ cos(πt/T), from SGD to SAM (p_cos2 of eq. 31). Δη = 1/2.

    Example:
        >>> schedule = rst.schedules.cosine_up()
        >>> [round(schedule(t, total_steps=4), 2) for t in range(4)]
        [0.0, 0.15, 0.5, 0.85]
    """
    return Wave("cosine_up")


def sine() -> Schedule:
    """p(t) = sin(πt/T) (p_sin1 of eq. 31). Δη = 2/π.

    Example:
        >>> schedule = rst.schedules.sine()
        >>> [round(schedule(t, total_steps=4), 2) for t in range(4)]
        [0.0, 0.71, 1.0, 0.71]
    """
    return Wave("sine")


def one_minus_sine() -> Schedule:
    """p(t) = 1 - sin(πt/T) (p_sin2 of eq. 31). Δη = 1 - 2/π; Table 6 prints 2/π.

    Example:
        >>> schedule = rst.schedules.one_minus_sine()
        >>> [round(schedule(t, total_steps=4), 2) for t in range(4)]
        [1.0, 0.29, 0.0, 0.29]
    """
    return Wave("one_minus_sine")


# Families that the paper does not have --------------------------------------------------------------------------------


def quarter_sine() -> Schedule:
    """p(t) = sin(πt/2T), from SGD to SAM; not in the paper. Δη = 2/π.

    Eq. 31 does not explain the Δη, times and errors that Table 6 reports for its two sines; this schedule together with
    `quarter_cosine` does.

    Example:
        >>> schedule = rst.schedules.quarter_sine()
        >>> [round(schedule(t, total_steps=4), 2) for t in range(4)]
        [0.0, 0.38, 0.71, 0.92]
    """
    return Wave("quarter_sine")


def quarter_cosine() -> Schedule:
    """p(t) = cos(πt/2T), from SAM to SGD; not in the paper (see `quarter_sine`). Δη = 2/π.

    Example:
        >>> schedule = rst.schedules.quarter_cosine()
        >>> [round(schedule(t, total_steps=4), 2) for t in range(4)]
        [1.0, 0.92, 0.71, 0.38]
    """
    return Wave("quarter_cosine")


def periodic(k: int) -> Schedule:
    """p(t) = 1 at every k-th step, t = k - 1, 2k - 1, ..., and else 0; not in the paper. Δη = ⌊T/k⌋ / T.

    k is an integer >= 1, else ValueError.

    Example:
        >>> schedule = rst.schedules.periodic(2)
        >>> [schedule(t, total_steps=5) for t in range(5)], schedule.mean(5)
        ([0.0, 1.0, 0.0, 1.0, 0.0], 0.4)
    """
    return Periodic(positive_integer("k", k))


def tail(fraction: float) -> Schedule:
    """p(t) = 1 in the last fraction of the steps, in [0, 1], else ValueError; before them p(t) = 0. Δη = fraction.

    This is `piecewise` with a = 0 (group 1 of Section 3.2), by its cost in place of b.

    Example:
        >>> schedule = rst.schedules.tail(0.25)
        >>> [schedule(t, total_steps=4) for t in range(4)]
        [0.0, 0.0, 0.0, 1.0]
    """
    fraction = in_unit_interval("fraction", fraction)
    return piecewise(0.0, round(1 - fraction, 12))


# A rule without p(t) --------------------------------------------------------------------------------------------------


def ae_sam(lambda_1: float = -1.0, lambda_2: float = 1.0, delta: float = 0.9) -> AESAM:
    """AE-SAM (Jiang et al., ICLR 2023, arXiv 2304.14647): step t is sharp where its clean gradient is large.

    With n_t = ‖g_t‖² and its moving mean μ_t and variance σ_t², step t is sharp where n_t >= μ_t + c_t σ_t::

        μ_t = δ μ_{t-1} + (1 - δ) n_t
        σ_t² = δ σ_{t-1}² + (1 - δ) (n_t - μ_t)²
        c_t = (t/T) λ_1 + (1 - t/T) λ_2

    They start as μ_0 = n_0 and σ_0 = 0, a choice of this library, so that step 0 is sharp. The decision falls after the
    clean pass. The share of sharp steps follows from the training and cannot be set; it grows over the training where
    λ_1 < λ_2. A factor of the loss that stays the same changes no decision.

    Args:
        lambda_1: c_t at the end of the training, any number.
        lambda_2: c_t at its start, any number.
        delta: δ, above 0 and below 1: how much of the mean and the variance is kept from step to step.

    Raises ValueError for a parameter outside its range.

    Example:
        >>> model, schedule = torch.nn.Linear(2, 1), rst.schedules.ae_sam()
        >>> method = rst.RST(model, rho=0.05, schedule=schedule, total_steps=100)
        >>> print(method.sharp)  # it is the clean pass that decides
        None
    """
    delta = in_unit_interval("delta", delta)
    if delta in (0, 1):
        raise ValueError(f"delta must be a number above 0 and below 1, got {delta!r}.")
    return AESAM(finite("lambda_1", lambda_1), finite("lambda_2", lambda_2), delta)
