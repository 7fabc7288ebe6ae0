"""Paired differences over seeds, and what can be concluded from them.

Runs of one seed share initial weights, the order of images and the numbers that the gate draws, so that two schemes are
compared by their differences seed by seed. A test returns the probability p of differences at least as favourable to
its hypothesis if that were not true; all are small where the hypothesis is supported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95
FLIPS = 2**14
"""The most flips of signs that are tried: all of those of up to 14 differences."""


@dataclass(frozen=True)
class Interval:
    """The mean of paired differences, with the interval that contains the true one with probability `CONFIDENCE`."""

    mean: float
    low: float
    high: float
    n: int


def interval(differences: ArrayLike) -> Interval:
    """The mean of n differences with its t interval, mean ± t s/√n; it is infinite for one difference."""
    values = np.asarray(differences, float)
    n = len(values)
    half = half_interval(values.std(ddof=1), n) if n > 1 else np.inf
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half), n)


def half_interval(std: Any, n: Any) -> Any:
    """t s/√n, half of the t interval of a mean of n values of standard deviation s; numbers or series.

    It is nan for n < 2.
    """
    return stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * std / n**0.5


def t_test(differences: ArrayLike, than: float = 0.0) -> float:
    """p of the paired t-test that the mean of the differences is less than ``than``; 1 for n = 1.

    It takes the differences for normally distributed. If all are equal, p is 0 or 1.
    """
    values = np.asarray(differences, float) - than
    if len(values) < 2:
        return 1.0
    if values.std(ddof=1) <= 1e-12 * np.abs(values).max():  # of rounding
        return float(values.mean() >= 0)
    return float(stats.ttest_1samp(values, 0, alternative="less").pvalue)


def sign_flip(differences: ArrayLike, than: float = 0.0) -> float:
    """p of the sign-flip test that the mean of the differences is less than ``than``, of two or more.

    If it were not, and the distribution is symmetric, each difference could as well have had the other sign: p is the
    share of all flips whose mean is as small. It needs no normal distribution, and is 2^-n at least. Where there are
    more than `FLIPS`, as many are drawn with a fixed seed.
    """
    values = np.asarray(differences, float) - than
    flipped = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", alternative="less", n_resamples=FLIPS, rng=0
    )
    return float(flipped.pvalue)


@dataclass(frozen=True)
class Evidence:
    """How well differences support a hypothesis: p of the t-test and of the sign-flip test."""

    t: float
    flip: float


def below(differences: ArrayLike, value: float) -> Evidence:
    """That the mean is less than ``value``: superiority at 0, and non-inferiority at a margin."""
    return Evidence(t_test(differences, value), sign_flip(differences, value))


def above(differences: ArrayLike, value: float) -> Evidence:
    """That the mean is greater than ``value``."""
    return below(-np.asarray(differences, float), -value)


def within(differences: ArrayLike, margin: float) -> Evidence:
    """That the mean is between -margin and margin: equivalence, by two one-sided tests."""
    return all_of([below(differences, margin), above(differences, -margin)])


def beyond(differences: ArrayLike, margin: float) -> Evidence:
    """That the mean is less than -margin or greater than margin."""
    return any_of([above(differences, margin), below(differences, -margin)])


def all_of(evidence: Sequence[Evidence]) -> Evidence:
    """That all of the hypotheses are true: the largest p."""
    return Evidence(max(one.t for one in evidence), max(one.flip for one in evidence))


def any_of(evidence: Sequence[Evidence]) -> Evidence:
    """That at least one of the hypotheses is true: the smallest p times their number (Bonferroni)."""
    n = len(evidence)
    return Evidence(min(1.0, n * min(one.t for one in evidence)), min(1.0, n * min(one.flip for one in evidence)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p of several tests, each as large as Holm's correction makes it: the smallest of m counts m times.

    If those up to 0.05 are taken for true, the probability that any of these is not is 0.05 at most.
    """
    adjusted, largest, m = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def welch(
    mean: pd.Series, std: pd.Series, n: pd.Series, other_mean: pd.Series, other_std: pd.Series, other_n: pd.Series
) -> pd.DataFrame:
    """Welch's t-test between pairs of independent means; it does not take the two variances for equal.

    Returns ``difference`` (the mean less the other), ``difference_low`` and ``difference_high`` (its 95 % interval) and
    ``p_value`` (two-sided). Without a standard deviation, as of one run, there is no test.
    """
    own, other = std**2 / n, other_std**2 / other_n  # variances of the means
    error = (own + other) ** 0.5
    freedom = (own + other) ** 2 / (own**2 / (n - 1) + other**2 / (other_n - 1))  # Welch and Satterthwaite
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error
    difference = mean - other_mean
    return pd.DataFrame(
        {
            "difference": difference,
            "difference_low": difference - half,
            "difference_high": difference + half,
            "p_value": 2 * stats.t.sf((difference / error).abs(), freedom),
        }
    )
