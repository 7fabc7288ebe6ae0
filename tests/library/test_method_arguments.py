"""Bad arguments are refused at once, in a sentence that names the argument and its value."""

import pytest
import torch
from torch import nn

import rst
from rst import schedules

MODEL = nn.Linear(2, 2)
GOOD = {"rho": 0.1, "schedule": schedules.constant(0.5), "gamma_ratio": 1.0, "total_steps": 40}

BAD = [
    ({"rho": -0.1}, "rho must be a finite number >= 0, got -0.1"),
    ({"rho": float("nan")}, "rho must be .* got nan"),
    ({"rho": float("inf")}, "rho must be .* got inf"),
    ({"rho": "0.1"}, "rho must be .* got '0.1'"),
    ({"rho": None}, "rho must be .* got None"),
    ({"rho": True}, "rho must be .* got True"),
    ({"gamma_ratio": -1}, "gamma_ratio must be .* got -1"),
    ({"gamma_ratio": float("nan")}, "gamma_ratio must be .* got nan"),
    ({"gamma_ratio": "automatic"}, "gamma_ratio must be a number >= 0, or 'auto', got 'automatic'"),
    ({"gamma_ratio": None}, "gamma_ratio must be .* got None"),
    ({"gamma_ratio": "auto", "schedule": schedules.never()}, r"'auto'.* is 0 for constant\(p=0.0\): give a number"),
    ({"schedule": lambda t, total_steps: 0.5 + t / 40}, "p = 1.025 at t = 21: p must lie in"),
    ({"schedule": lambda t, total_steps: 0.1 - 0.1 * t}, "p = -0.1 at t = 2: p must lie in"),
    ({"schedule": lambda t, total_steps: float("nan")}, "p = nan at t = 0: p must lie in"),
    ({"total_steps": 0}, "total_steps must be an integer >= 1, got 0"),
    ({"total_steps": -3}, "total_steps must be .* got -3"),
    ({"total_steps": 10.0}, "total_steps must be .* got 10.0"),
    ({"total_steps": True}, "total_steps must be .* got True"),
    ({"total_steps": None, "schedule": schedules.linear(0.5)}, r"linear\(m=0.5\) needs total_steps"),
    ({"total_steps": None, "schedule": lambda t, total_steps: 0.5}, "needs total_steps"),
]


@pytest.mark.parametrize(("bad", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_a_bad_value_is_refused(bad, sentence):
    rst.RST(MODEL, **GOOD)
    with pytest.raises(ValueError, match=sentence):
        rst.RST(MODEL, **{**GOOD, **bad})


def test_the_constructor_takes_no_word_that_it_does_not_know():
    with pytest.raises(TypeError, match="gama_ratio"):
        rst.RST(MODEL, **GOOD, gama_ratio=1.0)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "1", None, True])
@pytest.mark.parametrize("call", [lambda m, s: m.passes(share=s), lambda m, s: m.backward(MODEL, share=s)])
def test_a_bad_share_is_refused_before_the_first_pass(call, share):
    method = rst.RST(MODEL, **GOOD)
    with pytest.raises(ValueError, match=r"share must be a number in \[0, 1\], got"):
        call(method, share)
    assert MODEL.weight.grad is None


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_bad_value_of_a_callable_rho_is_refused_at_the_step_that_asks_for_it(value):
    method = rst.RST(MODEL, lambda t, total_steps: value, schedules.always())
    with pytest.raises(ValueError, match=f"rho must be .* got {value}"):
        method.backward(lambda: MODEL(torch.ones(2)).sum())
