"""The recipes of docs/integrations.md: a resumed training is the one that was not stopped; two processes are one."""

from concurrent.futures import ProcessPoolExecutor

import pytest
import sections
import torch
from conftest import PROCESSES, on_ranks
from textbook import assert_bitwise

import rst

pytestmark = pytest.mark.integrations

SECTIONS = [
    "Hugging Face Trainer",
    "Accelerate",
    "Lightning",
    sections.LOOP,
    "torch.compile",
    "PEFT and LoRA",
    "EMA of the weights",
    "Muon",
    "Schedule-free optimizers",
]

STEPS = sections.EPOCHS * sections.STEPS
GATE = rst.RST(torch.nn.Linear(1, 1), 0.05, rst.schedules.constant(0.5), total_steps=STEPS).gate

Found = dict[tuple[str, str], dict]


# Those of a section share a process of xdist, which trains for them once.
@pytest.fixture(scope="module", params=[pytest.param(own, marks=pytest.mark.xdist_group(own)) for own in SECTIONS])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Found]]:
    """What each process of one, and each of two, has found."""
    section, folder = request.param, tmp_path_factory.mktemp("section")
    with ProcessPoolExecutor(1, mp_context=PROCESSES) as alone:
        one = alone.submit(sections.results, section, folder / "one").result()
    two = on_ranks(sections.results, *[(section, folder / "two")] * 2)
    for answer in two:
        if isinstance(answer, Exception):
            raise answer
    return {1: [one], 2: two}


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_two_processes_train_as_one_does_to_rounding(found, precision):
    [one], [two, _] = found[1], found[2]
    # A weight that is rounded to bf16 in the forward pass may fall to its other neighbour.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if precision == "no" else {"rtol": 1e-2, "atol": 1e-3}
    weights = [torch.tensor(own[precision, "straight"]["weights"]) for own in (one, two)]
    torch.testing.assert_close(*weights, **tolerance)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_that_is_resumed_leads_where_one_leads_that_was_not_stopped(found, processes, precision):
    for own in found[processes]:
        assert_bitwise(own[precision, "resumed"], own[precision, "straight"])


def test_processes_have_the_same_weights(found):
    one, other = found[2]
    assert_bitwise(one, other)


def test_some_steps_are_sharp_and_some_plain_before_and_after_the_stop(found):
    for own in (*found[1], *found[2]):
        for outcome in own.values():
            assert outcome["t"] == STEPS
            assert outcome["sharp_steps"] == int(GATE.sum())
