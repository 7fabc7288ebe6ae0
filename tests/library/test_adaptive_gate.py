"""The gate that decides after the clean pass, by AE-SAM's rule, and what it shares with the gate that is drawn."""

import math
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from textbook_gate import ae_sam

from rst import schedules
from rst.gate import AdaptiveGate, Gate, make_gate

pytestmark = pytest.mark.filterwarnings("ignore:the gate of seed")

SEEDS = st.integers(0, 2**40)
STEPS = st.integers(1, 60)


def gate(total_steps: int | None, seed: int = 0, **parameters: float) -> AdaptiveGate:
    return make_gate(schedules.ae_sam(**parameters), total_steps, seed)


def norms_of(steps: int, seed: int) -> list[float]:
    """Squared norms over several orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, dtype=torch.float64, generator=generator).mul(2).exp().tolist()


def decisions(gate: AdaptiveGate, norms: list[float], first: int = 0) -> list[bool]:
    return [gate.decide(t, n) for t, n in enumerate(norms, first)]


# The rule -------------------------------------------------------------------------------------------------------------


@given(seed=SEEDS, steps=STEPS, lambda_1=st.floats(-3, 3), lambda_2=st.floats(-3, 3), delta=st.floats(0.01, 0.99))
def test_the_steps_are_those_of_the_textbook(seed, steps, lambda_1, lambda_2, delta):
    norms = norms_of(steps, seed)
    own = gate(steps, lambda_1=lambda_1, lambda_2=lambda_2, delta=delta)
    assert decisions(own, norms) == ae_sam(norms, steps, lambda_1, lambda_2, delta)


@given(seed=SEEDS, steps=STEPS, factor=st.floats(1e-6, 1e6))
def test_a_factor_of_all_norms_changes_no_decision(seed, steps, factor):
    norms = norms_of(steps, seed)
    assert decisions(gate(steps), norms) == decisions(gate(steps), [factor * n for n in norms])


@given(
    norms=st.lists(st.floats(0, 1e6, allow_subnormal=False).filter(lambda n: n == 0 or n > 1e-6), max_size=40),
    power=st.integers(-400, 400),
)
def test_a_power_of_two_changes_no_decision_even_where_squares_would_leave_the_range_of_floats(norms, power):
    scaled = [math.ldexp(n, power) for n in norms]
    assert decisions(gate(40), norms) == decisions(gate(40), scaled)


def test_the_first_step_is_sharp_and_so_are_all_while_the_norm_stays_the_same():
    assert decisions(gate(20), [0.1] * 20) == [True] * 20


def test_with_the_defaults_about_half_of_the_steps_are_sharp_and_most_of_them_late():
    sharp = torch.tensor(decisions(gate(4000), norms_of(4000, seed=0))).double()
    assert sharp.mean().item() == pytest.approx(0.5, abs=0.1)
    assert sharp[:1000].mean() < 0.25 < 0.75 < sharp[-1000:].mean()


@given(seed=SEEDS, steps=STEPS, at=st.integers(0, 59), bad=st.sampled_from([math.nan, math.inf]))
def test_a_norm_that_is_not_finite_gives_a_plain_step_and_leaves_the_statistics_alone(seed, steps, at, bad):
    own, norms, at = gate(61), norms_of(steps, seed), min(at, steps)
    expected = gate(61)
    for t in range(at):
        assert own.decide(t, norms[t]) == expected.decide(t, norms[t])
    assert own.decide(at, bad) is False
    for t in range(at, steps):
        assert own.decide(t + 1, norms[t]) == expected.decide(t + 1, norms[t])


@given(seed=SEEDS, steps=STEPS, again=st.integers(0, 59))
def test_a_step_that_is_decided_again_counts_once_with_its_last_norm(seed, steps, again):
    own, norms = gate(steps), norms_of(steps, seed)
    result = []
    for t, n in enumerate(norms):
        if t == again:
            own.decide(t, 100 * n)
        result.append(own.decide(t, n))
    assert result == decisions(gate(steps), norms)


# Saving and loading ---------------------------------------------------------------------------------------------------


@given(seed=SEEDS, steps=STEPS, cut=st.integers(0, 60), failed=st.booleans())
def test_a_gate_that_is_saved_and_loaded_at_any_step_decides_as_if_it_had_not_been(seed, steps, cut, failed):
    norms, cut = norms_of(steps, seed), min(cut, steps)
    first, second = gate(steps), gate(steps)
    early = decisions(first, norms[:cut])
    if failed and cut < steps:
        first.decide(cut, 50.0)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert early + decisions(second, norms[cut:], first=cut) == decisions(gate(steps), norms)


def test_the_state_is_plain_data_that_loads_as_weights_alone(tmp_path):
    for own in (gate(10), make_gate(schedules.sine(), 10, 0), make_gate(schedules.constant(0.5), None, 0)):
        torch.save(own.state_dict(), tmp_path / "state.pt")
        own.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


class Late(schedules.Schedule):
    name = "constant(p=0.5)"

    def rule(self, t: int, total_steps: int) -> float:
        return float(t > 3)


class Rare(schedules.Schedule):
    name = "constant(p=0.5)"
    time_invariant = True

    def rule(self, t: int, total_steps: int) -> float:
        return 0.1


HALF, RISING = schedules.constant(0.5), schedules.linear(0.5)
OTHERS = [
    ((HALF, 10, 0), (HALF, 10, 1), "seed 0, but this gate has seed 1: use the seed"),
    ((HALF, 10, 0), (schedules.linear(0.5), 10, 0), "schedule constant(p=0.5), but this gate has schedule linear"),
    ((RISING, 10, 0), (RISING, 20, 0), "total_steps 10, but this gate has total_steps 20: use the total_steps"),
    ((HALF, 10, 0), (Late(), 10, 0), "another schedule with the name constant(p=0.5), which gives other sharp steps"),
    ((HALF, None, 0), (Rare(), None, 0), "another schedule with the name constant(p=0.5)"),
    ((lambda t, total_steps: 0.2, 30, 0), (lambda t, total_steps: 0.7, 30, 0), "another schedule with the name a call"),
    ((schedules.ae_sam(), 10, 0), (schedules.ae_sam(), 20, 0), "total_steps 10, but this gate has total_steps 20"),
    (
        (schedules.ae_sam(), 10, 0),
        (schedules.ae_sam(delta=0.5), 10, 0),
        "delta=0.9), but this gate has schedule ae_sam",
    ),
    ((HALF, 10, 0), (schedules.ae_sam(), 10, 0), "schedule constant(p=0.5), but this gate has schedule ae_sam("),
    ((schedules.ae_sam(), 10, 0), (HALF, 10, 0), "but this gate has schedule constant(p=0.5)"),
]


@pytest.mark.parametrize(("saved", "own", "sentence"), OTHERS, ids=[sentence for *_, sentence in OTHERS])
def test_the_state_of_another_gate_is_refused_with_what_differs(saved, own, sentence):
    with pytest.raises(ValueError, match=f"^the state is that of .*{re.escape(sentence)}.* of the saved training.$"):
        make_gate(*own).load_state_dict(make_gate(*saved).state_dict())


@pytest.mark.parametrize(("saved", "own"), [(10, 20), (20, 10), (None, 20), (20, None)])
def test_a_training_on_a_constant_schedule_may_become_longer_or_shorter(saved, own):
    state = make_gate(HALF, saved, 0).state_dict()
    make_gate(HALF, own, 0).load_state_dict(state)
    with pytest.raises(ValueError, match="another schedule with the name constant"):
        make_gate(Rare(), own, 0).load_state_dict(state)


def test_the_same_function_of_another_name_makes_an_equal_gate():
    first, second = make_gate(lambda t, total_steps: t / total_steps, 30, 0), make_gate(rising, 30, 0)
    second.load_state_dict(first.state_dict())


def rising(t: int, total_steps: int) -> float:
    return t / total_steps


# What both gates answer -----------------------------------------------------------------------------------------------


def test_a_schedule_makes_a_gate_that_is_known_and_ae_sam_one_that_is_not():
    drawn, adaptive = make_gate(HALF, 10, 0), gate(10)
    assert isinstance(drawn, Gate)
    assert [drawn(t) for t in range(10)] == drawn.steps.tolist() == [drawn.decide(t, 1.0) for t in range(10)]
    assert [adaptive(t) for t in range(10)] == [None] * 10


@pytest.mark.parametrize("ask", [lambda own: own(10), lambda own: own.decide(10, 1.0)])
@pytest.mark.parametrize("schedule", [HALF, schedules.ae_sam()], ids=str)
def test_a_step_past_the_end_is_refused(schedule, ask):
    with pytest.raises(ValueError, match="step 10 is past the end of the training: total_steps is 10"):
        ask(make_gate(schedule, 10, 0))


@pytest.mark.parametrize("ask", [lambda own: own.steps, lambda own: own.mean, lambda own: own.share(3)])
def test_what_is_not_known_before_the_training_is_refused_in_a_sentence(ask):
    with pytest.raises(ValueError, match=r"^schedule ae_sam\(.*\) decides after the clean pass, so .* is not known"):
        ask(gate(10))


@pytest.mark.parametrize(("total_steps", "sentence"), [(None, "needs total_steps"), (0, "total_steps must be an int")])
def test_the_adaptive_gate_needs_the_length_of_the_training(total_steps, sentence):
    with pytest.raises(ValueError, match=sentence):
        gate(total_steps)


# The value ------------------------------------------------------------------------------------------------------------


def test_ae_sam_is_a_value_with_the_defaults_of_its_paper():
    rule = schedules.ae_sam()
    assert rule == schedules.ae_sam(-1, 1, 0.9) == pickle.loads(pickle.dumps(rule)) != schedules.ae_sam(delta=0.8)
    assert str(rule) == rule.name == "ae_sam(lambda_1=-1.0,lambda_2=1.0,delta=0.9)"


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"lambda_1": math.inf}, "lambda_1 must be a finite number, got inf"),
        ({"lambda_2": "1"}, "lambda_2 must be a finite number, got '1'"),
        ({"delta": 1.5}, r"delta must be a number in \[0, 1\], got 1.5"),
        ({"delta": 1}, "delta must be a number above 0 and below 1, got 1"),
    ],
)
def test_a_bad_parameter_is_refused_in_a_sentence_that_names_it(parameters, sentence):
    with pytest.raises(ValueError, match=sentence):
        schedules.ae_sam(**parameters)
