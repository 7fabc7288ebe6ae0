"""The tests of claims agree with scipy's and with the laws that they state."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rst.experiments.report.statistics import (
    Evidence,
    above,
    all_of,
    any_of,
    below,
    beyond,
    holm,
    interval,
    sign_flip,
    t_test,
    welch,
    within,
)

NUMBERS = st.floats(-100, 100).map(lambda x: round(x, 3))
DIFFERENCES = st.lists(NUMBERS, min_size=2, max_size=8)
VARIED = DIFFERENCES.filter(lambda values: np.std(values) > 0.01)
"""Differences that are not all alike, for which scipy has a t-test too."""
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(VARIED)
def test_the_interval_is_scipys(differences: list[float]) -> None:
    found = interval(differences)
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)
    assert (found.mean, found.n) == (pytest.approx(np.mean(differences)), len(differences))


def test_one_difference_has_an_infinite_interval_and_no_t_test() -> None:
    assert (interval([2.0]).low, interval([2.0]).high) == (-np.inf, np.inf)
    assert t_test([2.0]) == 1


@given(st.integers(2, 14))
def test_differences_of_one_sign_have_the_smallest_p_that_n_seeds_can_have(n: int) -> None:
    assert sign_flip([-1.0] * n) == 2**-n


def test_with_many_seeds_drawn_flips_repeat_themselves() -> None:
    differences = np.random.default_rng(1).normal(0.4, 1, size=16)
    assert sign_flip(differences) == sign_flip(differences)
    assert sign_flip([-1.0] * 100) == 1 / (2**14 + 1)


@given(DIFFERENCES, NUMBERS)
def test_every_p_is_a_probability(differences: list[float], than: float) -> None:
    assert 0 <= t_test(differences, than) <= 1
    assert 0 < sign_flip(differences, than) <= 1


@given(DIFFERENCES, NUMBERS)
def test_less_of_the_differences_is_greater_of_their_opposites(differences: list[float], than: float) -> None:
    opposites = [-one for one in differences]
    found, other = below(differences, than), above(opposites, -than)
    assert (found.t, found.flip) == pytest.approx((other.t, other.flip))


@given(st.lists(st.just(0.5), min_size=2, max_size=8))
def test_equal_differences_have_no_doubt_by_the_t_test(differences: list[float]) -> None:
    assert (below(differences, 1.0).t, above(differences, 1.0).t) == (0, 1)


# ------------------------------------------------------------------------------------------------------------ margins


@given(VARIED, st.floats(0.1, 50))
def test_equivalence_is_the_larger_p_of_two_one_sided_tests(differences: list[float], margin: float) -> None:
    expected = max(
        stats.ttest_1samp(differences, margin, alternative="less").pvalue,
        stats.ttest_1samp(differences, -margin, alternative="greater").pvalue,
    )
    assert within(differences, margin).t == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(VARIED, st.floats(0.1, 50))
def test_equivalence_is_shown_where_the_90_percent_interval_lies_within_the_margin(
    differences: list[float], margin: float
) -> None:
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.90)
    if min(abs(abs(low) - margin), abs(abs(high) - margin)) > 1e-6:  # not on the border
        assert (within(differences, margin).t <= 0.05) == (-margin < low and high < margin)


@given(DIFFERENCES, st.floats(0.1, 50), st.floats(0.1, 50))
def test_a_wider_margin_is_kept_more_surely(differences: list[float], margin: float, more: float) -> None:
    assert within(differences, margin + more).t <= within(differences, margin).t + 1e-12
    assert below(differences, margin + more).t <= below(differences, margin).t + 1e-12


@given(DIFFERENCES, st.floats(0.1, 50))
def test_the_same_differences_never_show_that_a_margin_is_kept_and_that_it_is_not(
    differences: list[float], margin: float
) -> None:
    assert within(differences, margin).t + beyond(differences, margin).t >= 0.5


# ---------------------------------------------------------------------------------------------------- several tests


def plain_holm(p_values: list[float], level: float) -> set[int]:
    """Holm's procedure as it is taught: from the smallest p on, reject while p ≤ level / (tests that are left)."""
    rejected: set[int] = set()
    for i in sorted(range(len(p_values)), key=lambda i: p_values[i]):
        if p_values[i] > level / (len(p_values) - len(rejected)):
            break
        rejected.add(i)
    return rejected


@given(P_VALUES, st.floats(0.001, 0.5))
def test_holms_p_rejects_what_holms_procedure_rejects(p_values: list[float], level: float) -> None:
    adjusted = holm(p_values)
    if all(abs(p - level) > 1e-9 for p in adjusted):  # not on the border, where rounding decides
        assert {i for i, p in enumerate(adjusted) if p <= level} == plain_holm(p_values, level)


@given(P_VALUES)
def test_holms_p_keeps_the_order_and_is_never_smaller(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


def test_all_of_several_hypotheses_is_as_sure_as_the_least_sure_one() -> None:
    assert all_of([Evidence(0.01, 0.2), Evidence(0.03, 0.1)]) == Evidence(0.03, 0.2)


def test_any_of_several_hypotheses_pays_for_having_looked_several_times() -> None:
    assert any_of([Evidence(0.01, 0.2), Evidence(0.03, 0.7)]) == Evidence(0.02, 0.4)
    assert any_of([Evidence(0.9, 0.9)] * 2) == Evidence(1, 1)


# -------------------------------------------------------------------------------------------------- against the paper


@given(VARIED, VARIED)
def test_welchs_test_is_scipys(ours: list[float], theirs: list[float]) -> None:
    facts = [
        pd.Series([float(f(values))]) for values in (ours, theirs) for f in (np.mean, lambda x: np.std(x, ddof=1), len)
    ]
    found = welch(*facts).iloc[0]
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert found["p_value"] == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((low, high), rel=1e-6, abs=1e-9)
