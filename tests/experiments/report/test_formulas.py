"""Table 2 of the paper: its formulas for Δη are the means of the schedules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rst import schedules
from rst.experiments.keys import ScheduleOptions
from rst.experiments.report.formulas import closed_form

unit, steps = st.floats(0, 1), st.integers(1, 300)


def closed(family: str, **parameters: float) -> float:
    return closed_form(ScheduleOptions(name=family, **parameters))


@given(unit, unit, steps)
def test_formulas_of_constant_and_piecewise_schedules_are_their_means(a: float, b: float, total_steps: int) -> None:
    whole = round(b * total_steps) / total_steps  # p changes between two steps
    assert closed("constant", p=a) == schedules.constant(a).mean()
    assert closed("piecewise", a=a, b=whole) == pytest.approx(schedules.piecewise(a, whole).mean(total_steps), abs=1e-9)
    assert abs(closed("tail", fraction=b) - schedules.tail(b).mean(total_steps)) <= 1 / total_steps + 1e-9


@given(unit, steps)
def test_formulas_of_linear_schedules_exceed_their_means_by_half_the_rise_of_a_step(m: float, total_steps: int) -> None:
    rise = (2 * m if m <= 0.5 else 2 * (1 - m)) / total_steps
    assert closed("linear", m=m) - rise / 2 == pytest.approx(schedules.linear(m).mean(total_steps), abs=1e-9)
    rise = (1 - 2 * m) / total_steps
    assert closed("linear_through", b=m) - rise / 2 == pytest.approx(
        schedules.linear_through(m).mean(total_steps), abs=1e-9
    )


def test_a_schedule_that_table_2_lacks_has_no_formula() -> None:
    assert math.isnan(closed("sine"))
