"""Saving, loading and continuing gives the training that was never stopped, bit for bit."""

import copy
import io
import itertools
import re
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import OPTIMIZERS, Network, assert_bitwise, batch, loss_on, state

import rst
from rst import schedules
from rst.variants import Variant

STEPS = 6
SCHEMES = {
    "sgd": {"schedule": schedules.never()},
    "sam": {"schedule": schedules.always()},
    "gnr": {"schedule": schedules.always(), "gamma_ratio": 0.8},
    "rst": {"schedule": schedules.linear(0.8)},
    "grst": {"schedule": schedules.constant(0.5), "gamma_ratio": "auto"},
}


class Training:
    """A network, its optimizer and the method, which save and load a checkpoint of all three."""

    def __init__(self, scheme: str, optimizer: str) -> None:
        self.model = Network()
        self.optimizer = OPTIMIZERS[optimizer](self.model.groups())
        self.method = rst.RST(self.model, 0.1, total_steps=STEPS, seed=1, **SCHEMES[scheme])
        torch.manual_seed(7)

    def run_to(self, end: int) -> None:
        while self.method.t < end:
            x, y = batch(self.method.t)
            self.method.backward(lambda x=x, y=y: loss_on(self.model, x, y))
            self.optimizer.step()
            self.optimizer.zero_grad()

    def save(self) -> dict:
        return copy.deepcopy(state(self.model, self.optimizer) | {"method": self.method.state_dict()})

    def load(self, checkpoint: dict) -> None:
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.method.load_state_dict(checkpoint["method"])
        torch.set_rng_state(checkpoint["random"])


@lru_cache
def never_stopped(scheme: str, optimizer: str) -> dict:
    training = Training(scheme, optimizer)
    training.run_to(STEPS)
    return training.save()


@pytest.mark.parametrize("scheme", SCHEMES)
@given(stop=st.integers(0, STEPS), optimizer=st.sampled_from(["momentum", "adam"]))
@settings(max_examples=6)
def test_stopping_at_any_step_and_continuing_equals_never_stopping(scheme, stop, optimizer):
    expected = never_stopped(scheme, optimizer)
    first = Training(scheme, optimizer)
    first.run_to(stop)
    checkpoint = first.save()
    torch.manual_seed(99)
    second = Training(scheme, optimizer)
    second.load(checkpoint)
    second.run_to(STEPS)
    assert_bitwise(second.save(), expected)
    assert second.method.t == STEPS


def test_the_state_of_sam_is_counters_and_what_its_gate_is_made_of_and_loads_with_weights_only():
    training = Training("sam", "momentum")
    training.run_to(3)
    file = io.BytesIO()
    torch.save(training.method.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    gate = loaded.pop("gate")
    counters = {"t": 3, "sharp_steps": 3, "forward_passes": 6.0, "backward_passes": 6.0, "_plain_passes": 3.0}
    assert loaded == {**counters, "variant": {}, "variant_class": "SAM", "variant_values": 0}
    assert (gate["schedule"], gate["seed"], gate["total_steps"]) == ("constant(p=1.0)", 1, STEPS)


@pytest.mark.parametrize("saved", SCHEMES)
@pytest.mark.parametrize("own", SCHEMES)
def test_the_state_of_another_schedule_is_refused_and_changes_nothing(saved, own):
    first, second = Training(saved, "momentum"), Training(own, "momentum")
    first.run_to(3)
    if first.method.schedule == second.method.schedule:
        second.method.load_state_dict(first.method.state_dict())
        assert second.method.t == 3
    else:
        with pytest.raises(ValueError, match="use the schedule of the saved training"):
            second.method.load_state_dict(first.method.state_dict())
        assert second.method.t == 0


class Counting(Variant):
    """SAM with a state whose names are those of the method's own."""

    def __init__(self) -> None:
        self.own = {"t": 70, "gate": 71, "variant": 72, "sharp_steps": 73}

    def state_dict(self) -> dict:
        return self.own

    def load_state_dict(self, state: dict) -> None:
        self.own = state


def test_the_names_in_the_state_of_a_variant_are_its_own():
    method, other = (rst.RST(Network(), 0.1, schedules.always(), variant=Counting()) for _ in range(2))
    other.variant.own = {}
    method.t = 5
    other.load_state_dict(method.state_dict())
    assert other.t == 5
    assert other.variant.own == Counting().own


@pytest.mark.parametrize(("saved", "own"), list(itertools.permutations(["sam", "looksam", "friendly", "ssam_d"], 2)))
def test_the_state_of_another_variant_is_refused_and_changes_nothing(saved, own):
    first, second = (rst.RST(Network(), 0.1, schedules.always(), total_steps=4, variant=name) for name in (saved, own))
    first.t = 3
    state, before = first.state_dict(), second.state_dict()
    classes = (type(method.variant).__name__ for method in (first, second, first))
    sentence = "the state is that of a method with variant {}, and this one has {}: use {}.".format(*classes)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        second.load_state_dict(state)
    assert second.state_dict() == before


def test_a_state_that_lacks_part_of_the_variant_is_refused_and_changes_nothing():
    """As after `torch.distributed.checkpoint`, which fills only what a new method has."""
    first, second = (rst.RST(Network(), 0.1, schedules.always(), variant="looksam") for _ in range(2))
    first.backward(lambda: loss_on(first.model, *batch(0)))
    with pytest.raises(ValueError, match=r"LookSAM saved \d+ values and gets 0, .* save .* with torch.save"):
        second.load_state_dict({**first.state_dict(), "variant": second.variant.state_dict()})
    assert second.t == 0


def test_a_training_may_go_on_for_longer_where_p_is_constant():
    first, second = (rst.RST(Network(), 0.1, schedules.constant(0.5), total_steps=n, seed=1) for n in (10, 20))
    first.t = 9
    second.load_state_dict(first.state_dict())
    assert second.t == 9
    assert second.gate[:10].equal(first.gate)


def test_the_saved_counters_go_on_where_they_were():
    first = Training("rst", "momentum")
    first.run_to(4)
    second = Training("rst", "momentum")
    second.load(first.save())
    assert 0 < second.method.sharp_steps == first.method.sharp_steps
    assert second.method.realised_extra_propagations == first.method.realised_extra_propagations > 0
