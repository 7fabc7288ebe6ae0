"""Every schedule p(t) against its formula, its range and its mean (Section 3.2, Table 2, eq. 31)."""

import math
import pickle
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import uniform_mean

import rst
from rst import schedules

UNIT = st.floats(0, 1)
ANY = st.one_of(
    st.sampled_from([schedules.never(), schedules.always(), schedules.cosine_down(), schedules.cosine_up()]),
    st.sampled_from([schedules.sine(), schedules.one_minus_sine(), schedules.quarter_sine()]),
    st.just(schedules.quarter_cosine()),
    st.builds(schedules.constant, UNIT),
    st.builds(schedules.piecewise, UNIT, UNIT),
    st.builds(schedules.linear, UNIT),
    st.builds(schedules.linear_through, UNIT),
    st.builds(schedules.periodic, st.integers(1, 50)),
    st.builds(schedules.tail, UNIT),
)


def sequence(schedule: schedules.Schedule, total_steps: int) -> list[float]:
    return [schedule(t, total_steps) for t in range(total_steps)]


# The sequences --------------------------------------------------------------------------------------------------------

SEQUENCES = [
    (schedules.never(), [0, 0, 0, 0, 0, 0, 0, 0]),
    (schedules.always(), [1, 1, 1, 1, 1, 1, 1, 1]),
    (schedules.constant(0.3), [0.3] * 8),
    (schedules.piecewise(0, 0.25), [0, 0, 1, 1, 1, 1, 1, 1]),
    (schedules.piecewise(1, 0.25), [1, 1, 0, 0, 0, 0, 0, 0]),
    (schedules.piecewise(0.2, 0.5), [0.2, 0.2, 0.2, 0.2, 0.8, 0.8, 0.8, 0.8]),
    (schedules.piecewise(0, 0), [1] * 8),
    (schedules.piecewise(0, 1), [0] * 8),
    (schedules.linear(0.4), [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
    (schedules.linear(0.8), [0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]),
    (schedules.linear_through(0.1), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
    (schedules.linear_through(0.9), [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]),
    (schedules.periodic(1), [1] * 8),
    (schedules.periodic(3), [0, 0, 1, 0, 0, 1, 0, 0]),
    (schedules.periodic(9), [0] * 8),
    (schedules.tail(0), [0] * 8),
    (schedules.tail(0.25), [0, 0, 0, 0, 0, 0, 1, 1]),
    (schedules.tail(1), [1] * 8),
]


@pytest.mark.parametrize(("schedule", "expected"), SEQUENCES, ids=lambda value: str(value)[:40])
def test_p_of_the_first_eight_steps_is_as_written_out(schedule, expected):
    assert sequence(schedule, 8) == pytest.approx(expected)


WAVES = {
    schedules.cosine_down: (lambda u: 0.5 + 0.5 * math.cos(math.pi * u), 0.5),
    schedules.cosine_up: (lambda u: 0.5 - 0.5 * math.cos(math.pi * u), 0.5),
    schedules.sine: (lambda u: math.sin(math.pi * u), 2 / math.pi),
    schedules.one_minus_sine: (lambda u: 1 - math.sin(math.pi * u), 1 - 2 / math.pi),
    schedules.quarter_sine: (lambda u: math.sin(math.pi * u / 2), 2 / math.pi),
    schedules.quarter_cosine: (lambda u: math.cos(math.pi * u / 2), 2 / math.pi),
}


@pytest.mark.parametrize("factory", WAVES, ids=lambda factory: factory.__name__)
def test_the_trigonometric_schedules_follow_their_formula_and_its_integral(factory):
    rule, integral = WAVES[factory]
    assert sequence(factory(), 60) == pytest.approx([rule(t / 60) for t in range(60)])
    assert uniform_mean(rule) == pytest.approx(integral, abs=1e-6)
    assert factory().mean(1000) == pytest.approx(integral, abs=1 / 1000)


@pytest.mark.parametrize("tenths", range(11))
@pytest.mark.parametrize("total_steps", [10, 30, 70, 1000])
def test_a_share_in_tenths_of_the_steps_is_an_exact_number_of_steps(tenths, total_steps):
    steps = tenths * total_steps // 10
    assert sum(sequence(schedules.piecewise(1, tenths / 10), total_steps)) == steps
    assert sum(sequence(schedules.piecewise(0, tenths / 10), total_steps)) == total_steps - steps
    assert sum(sequence(schedules.tail(tenths / 10), total_steps)) == steps


# Range and mean -------------------------------------------------------------------------------------------------------


@given(schedule=ANY, total_steps=st.integers(1, 300))
@settings(max_examples=200)
def test_p_is_between_0_and_1_and_the_mean_is_that_over_the_steps(schedule, total_steps):
    p = sequence(schedule, total_steps)
    assert all(0 <= value <= 1 for value in p)
    assert schedule.mean(total_steps) == pytest.approx(sum(p) / total_steps, abs=1e-12)


@given(a=UNIT, b=UNIT, total_steps=st.integers(1, 2000))
@settings(max_examples=100)
def test_the_means_approach_the_closed_forms_of_table_2(a, b, total_steps):
    """Table 2 takes t to be continuous; the mean over T steps differs from that by at most 1 / T."""
    closed_forms = [
        (schedules.constant(a), a),
        (schedules.piecewise(a, b), 1 + 2 * a * b - b - a),
        (schedules.linear(a), a),
        (schedules.linear_through(b), 0.5),
        (schedules.tail(a), a),
    ]
    for schedule, closed_form in closed_forms:
        assert abs(schedule.mean(total_steps) - closed_form) <= 1 / total_steps + 1e-12


@given(k=st.integers(1, 100), total_steps=st.integers(1, 1000))
@settings(max_examples=100)
def test_a_periodic_schedule_has_one_sharp_step_in_every_k(k, total_steps):
    assert schedules.periodic(k).mean(total_steps) == total_steps // k / total_steps


def test_only_a_time_invariant_schedule_needs_no_total_steps():
    assert schedules.constant(0.3).mean() == schedules.constant(0.3)(17) == 0.3
    for call in (schedules.linear(0.3).mean, lambda: schedules.linear(0.3)(17)):
        with pytest.raises(ValueError, match=r"linear\(m=0.3\) changes over the training: give total_steps"):
            call()


# Schedules are values -------------------------------------------------------------------------------------------------


@given(schedule=ANY)
@settings(max_examples=50)
def test_a_schedule_survives_pickling_as_an_equal_value(schedule):
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert hash(copy) == hash(schedule)
    assert sequence(copy, 8) == sequence(schedule, 8)


class Early(schedules.Schedule):
    name = "linear(m=0.3)"

    def rule(self, t: int, total_steps: int) -> float:
        return float(t < 2)


@dataclass
class Settable(schedules.Schedule):
    p: float
    name = "settable"

    def rule(self, t: int, total_steps: int) -> float:
        return self.p


def test_a_schedule_of_ones_own_has_its_own_mean_under_the_name_of_another():
    assert schedules.linear(0.3).mean(10) != Early().mean(10) == 0.2
    assert Early() != schedules.linear(0.3)


def test_the_mean_follows_a_schedule_that_can_change():
    schedule = Settable(0.2)
    before, schedule.p = schedule.mean(10), 0.4
    assert (before, schedule.mean(10)) == (pytest.approx(0.2), pytest.approx(0.4))


@pytest.mark.parametrize("p", [1.5, -0.1, float("nan")])
def test_a_constant_schedule_of_ones_own_is_refused_where_p_is_no_probability(p):
    @dataclass
    class Constant(Settable):
        time_invariant: ClassVar[bool] = True

    with pytest.raises(ValueError, match=r"gives p = \S+ at t = 0: p must lie in \[0, 1\]"):
        rst.RST(torch.nn.Linear(2, 1), 0.1, Constant(p))


def test_a_schedule_without_a_name_or_a_rule_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        schedules.Schedule()


# The names ------------------------------------------------------------------------------------------------------------

FAMILIES = [
    schedules.constant,
    schedules.linear,
    schedules.linear_through,
    lambda x: schedules.piecewise(x, 0.5),
    lambda x: schedules.piecewise(0.3, x),
]


@pytest.mark.parametrize("family", FAMILIES)
@given(first=UNIT, second=UNIT)
@settings(max_examples=50)
def test_within_a_family_two_names_are_equal_where_the_parameters_are(family, first, second):
    assert (family(first).name == family(second).name) == (first == second)
    assert (family(first) == family(second)) == (first == second)


def test_parameters_that_differ_in_the_last_bit_have_different_names():
    assert schedules.constant(0.3).name != schedules.constant(0.1 + 0.2).name


def test_schedules_of_different_families_have_different_names():
    members = [family(0.25) for family in FAMILIES]
    members += [schedules.periodic(2), *(factory() for factory in WAVES)]
    assert all(first.name != second.name and first != second for first, second in combinations(members, 2))


def test_never_and_always_are_constants_and_integers_are_taken_as_floats():
    assert schedules.never() == schedules.constant(0) == schedules.constant(0.0)
    assert schedules.always() == schedules.constant(1)
    assert str(schedules.piecewise(0, 0.5)) == schedules.piecewise(0.0, 0.5).name


@given(x=UNIT)
def test_the_same_p_made_by_two_factories_has_the_same_name(x):
    half = schedules.constant(0.5)
    assert schedules.piecewise(0.5, x) == schedules.linear_through(0.5) == half
    assert schedules.tail(x) == schedules.piecewise(0, round(1 - x, 12))


# Bad values -----------------------------------------------------------------------------------------------------------

BAD = [
    (lambda: schedules.constant(1.5), "p must be .* got 1.5"),
    (lambda: schedules.constant(float("nan")), "p must be .* got nan"),
    (lambda: schedules.constant("0.5"), "p must be .* got '0.5'"),
    (lambda: schedules.constant(None), "p must be .* got None"),
    (lambda: schedules.constant(True), "p must be .* got True"),
    (lambda: schedules.piecewise(-0.1, 0.5), "a must be .* got -0.1"),
    (lambda: schedules.piecewise(0, 2), "b must be .* got 2"),
    (lambda: schedules.linear(1.1), "m must be .* got 1.1"),
    (lambda: schedules.linear_through(-1), "b must be .* got -1"),
    (lambda: schedules.periodic(0), "k must be an integer >= 1, got 0"),
    (lambda: schedules.periodic(2.0), "k must be an integer >= 1, got 2.0"),
    (lambda: schedules.tail(1.01), "fraction must be .* got 1.01"),
]


@pytest.mark.parametrize(("make", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_a_bad_parameter_is_refused_in_a_sentence_that_names_it(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
