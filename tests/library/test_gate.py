"""The gate X_t ~ Bernoulli(p(t)): a function of (seed, t) and p(t) alone, known before the training."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rst
from rst import schedules
from rst.gate import Gate, _uniform_block

pytestmark = pytest.mark.filterwarnings("ignore:the gate of seed")

MODEL = nn.Linear(2, 2)
SEEDS = st.integers(0, 2**40)
SHARE = st.floats(0, 1)


def gate(schedule, total_steps: int, seed: int = 0) -> torch.Tensor:
    return make(schedule, total_steps, seed).gate


def make(schedule, total_steps: int | None, seed: int = 0) -> rst.RST:
    return rst.RST(MODEL, 0.1, schedule, total_steps=total_steps, seed=seed)


def step(method: rst.RST) -> int:
    """Run one step; returns the number of forward passes that the network made."""
    calls = []
    handle = MODEL.register_forward_hook(lambda *_: calls.append(None))
    for weight in method.passes():
        (weight * MODEL(torch.ones(2)).sum()).backward()
    handle.remove()
    return len(calls)


# What X_t depends on --------------------------------------------------------------------------------------------------


def test_the_gate_of_a_training_is_one_boolean_for_each_step():
    whole = gate(schedules.constant(0.5), 30)
    assert whole.shape == (30,)
    assert whole.dtype == torch.bool


@given(seed=SEEDS, p=SHARE, short=st.integers(1, 1500), more=st.integers(0, 1500))
@settings(max_examples=30)
def test_the_gate_does_not_depend_on_the_length_of_the_training(seed, p, short, more):
    assert torch.equal(
        gate(schedules.constant(p), short + more, seed)[:short], gate(schedules.constant(p), short, seed)
    )


@given(seed=SEEDS, p=SHARE, more=SHARE)
@settings(max_examples=30)
def test_a_step_that_is_sharp_under_p_is_sharp_under_every_larger_p(seed, p, more):
    low, high = gate(schedules.constant(min(p, more)), 300, seed), gate(schedules.constant(max(p, more)), 300, seed)
    assert not (low & ~high).any()


@given(seed=SEEDS, t=st.integers(0, 5000), p=SHARE)
@settings(max_examples=30)
def test_a_constant_schedule_gives_the_same_gate_without_total_steps(seed, t, p):
    endless, whole = make(schedules.constant(p), None, seed), make(schedules.constant(p), t + 1, seed)
    endless.load_state_dict({**endless.state_dict(), "t": t})
    assert endless.sharp == whole.gate[t].item()


def test_the_gate_depends_on_its_seed_but_not_on_that_of_torch():
    torch.manual_seed(0)
    first = gate(schedules.constant(0.5), 200, seed=1)
    torch.manual_seed(1)
    assert torch.equal(gate(schedules.constant(0.5), 200, seed=1), first)
    assert not torch.equal(gate(schedules.constant(0.5), 200, seed=2), first)


def test_any_callable_is_a_schedule():
    method = make(lambda t, total_steps: float(t >= total_steps - 2), 5)
    assert method.gate.tolist() == [False, False, False, True, True]
    assert method.expected_extra_propagations == pytest.approx(2 / 5)


def test_the_gate_is_made_on_the_cpu_whatever_the_default_device():
    expected = gate(schedules.linear(0.5), 1500, seed=8000).tolist()
    _uniform_block.cache_clear()
    with torch.device("meta"):
        whole, endless = gate(schedules.linear(0.5), 1500, seed=8000), make(schedules.constant(0.5), None, seed=8001)
        assert endless.sharp in (True, False)
        assert endless.drawn_extra_propagations == 0
    assert whole.tolist() == expected


def test_numbers_of_numpy_are_steps_and_seeds():
    assert torch.equal(gate(schedules.constant(0.5), np.int64(30), np.int64(3)), gate(schedules.constant(0.5), 30, 3))


# Its distribution -----------------------------------------------------------------------------------------------------


def test_the_gate_is_always_closed_with_p_0_and_always_open_with_p_1():
    assert not gate(schedules.never(), 5000).any()
    assert gate(schedules.always(), 5000).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "schedule", [schedules.constant(0.1), schedules.constant(0.5), schedules.linear(0.7), schedules.sine()], ids=str
)
def test_the_share_of_sharp_steps_is_within_four_standard_deviations_of_the_mean_of_p(schedule, seed):
    steps = 4000
    method = make(schedule, steps, seed)
    variance = math.fsum(schedule(t, steps) * (1 - schedule(t, steps)) for t in range(steps)) / steps**2
    assert method.expected_extra_propagations == schedule.mean(steps)
    distance = abs(method.drawn_extra_propagations - method.expected_extra_propagations)
    assert 0 < distance < 4 * math.sqrt(variance)


def test_the_gates_of_neighbouring_seeds_are_uncorrelated():
    gates = torch.stack([gate(schedules.constant(0.5), 4000, seed) for seed in range(6)]).double()
    correlation = torch.corrcoef(gates) - torch.eye(6)
    assert correlation.abs().max() < 4 / math.sqrt(4000)


# Steps and their count ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_a_plain_step_makes_one_forward_pass_and_a_sharp_step_two(p):
    method = make(schedules.constant(p), 40, seed=4)
    assert [step(method) for _ in range(40)] == (method.gate + 1).tolist()


@pytest.mark.parametrize("total_steps", [25, None])
def test_the_realised_extra_propagations_are_those_of_the_passes_that_ran(total_steps):
    method = make(schedules.constant(0.4), total_steps)
    passes = [step(method) for _ in range(25)]
    assert method.realised_extra_propagations == pytest.approx(sum(passes) / 25 - 1)


def test_without_total_steps_the_realised_extra_propagations_start_at_zero():
    assert make(schedules.always(), None).realised_extra_propagations == 0


def test_a_step_past_the_end_is_refused():
    method = make(schedules.always(), 2)
    step(method), step(method)
    with pytest.raises(ValueError, match=r"step 2 is past the end.*total_steps is 2"):
        method.passes()


def test_the_gate_of_the_whole_training_is_refused_without_total_steps():
    with pytest.raises(ValueError, match="total_steps"):
        _ = make(schedules.constant(0.5), None).gate


@pytest.mark.parametrize(("p", "word"), [(1e-6, "closed"), (1 - 1e-6, "open")])
def test_a_gate_that_never_changes_although_p_is_between_0_and_1_warns(p, word):
    with pytest.warns(UserWarning, match=f"the gate of seed 0 is {word} at every one of the 20 steps, although"):
        rst.RST(MODEL, 0.1, schedules.constant(p), total_steps=20)


@pytest.mark.parametrize("schedule", [schedules.never(), schedules.always(), schedules.constant(0.5)], ids=str)
@pytest.mark.filterwarnings("error")
def test_a_gate_that_follows_its_schedule_does_not_warn(schedule):
    rst.RST(MODEL, 0.1, schedule, total_steps=20)


# What is no schedule --------------------------------------------------------------------------------------------------

NO_SCHEDULE = [
    (0.25, "got 0.25: write rst.schedules.constant(0.25)."),
    (1, "got 1: write rst.schedules.constant(1.0)."),
    (50, "got 50: write rst.schedules.constant(0.5)."),
    (None, "got None: write rst.schedules.constant(0.5)."),
    ("sine", "got 'sine': write rst.schedules.sine()."),
    ("half", "got 'half': write rst.schedules.constant(0.5)."),
    (schedules.piecewise, "write rst.schedules.piecewise(a, b)."),
    (schedules.Constant, "write rst.schedules.constant(p)."),
    (schedules.Schedule, "write rst.schedules.constant(0.5)."),
]


@pytest.mark.parametrize("total_steps", [20, None])
@pytest.mark.parametrize(("schedule", "sentence"), NO_SCHEDULE, ids=[sentence for _, sentence in NO_SCHEDULE])
def test_what_is_no_schedule_is_refused_with_what_to_write_instead(schedule, sentence, total_steps):
    with pytest.raises(ValueError, match=f"^schedule must be .*{re.escape(sentence)}$"):
        Gate(schedule, total_steps, seed=0)


def test_a_callable_that_gives_no_number_is_refused_with_its_step():
    with pytest.raises(ValueError, match="gives p = None at t = 3: p must be a number"):
        Gate(lambda t, total_steps: None if t == 3 else 0.5, 5, seed=0)


@pytest.mark.parametrize("seed", [0.5, "0", None, True])
def test_a_seed_that_is_no_integer_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer, got"):
        Gate(schedules.constant(0.5), 5, seed)
