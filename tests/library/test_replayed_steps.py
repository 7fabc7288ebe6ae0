"""A step whose passes were replayed elsewhere counts as if they had run here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textbook import Network, batch, loss_on

import rst
from rst import schedules

X, Y = batch(0)


def method_of(p: float, variant: str = "sam", seed: int = 0) -> tuple[rst.RST, Network]:
    model = Network()
    return rst.RST(model, 0.1, schedules.constant(p), total_steps=12, seed=seed, variant=variant), model


def counts(method: rst.RST) -> dict[str, object]:
    return {key: value for key, value in method.state_dict().items() if key != "variant"}


@given(
    p=st.sampled_from([0.0, 0.3, 0.5, 1.0]), seed=st.integers(0, 5), variant=st.sampled_from(["sam", "asam", "gsam"])
)
def test_replayed_steps_count_what_steps_that_run_count(p: float, seed: int, variant: str) -> None:
    (ran, model), (replayed, _) = method_of(p, variant, seed), method_of(p, variant, seed)
    for _ in range(5):
        ran.backward(lambda: loss_on(model, X, Y))
        replayed.count_replayed_step()
        assert counts(replayed) == counts(ran)
    assert replayed.realised_extra_propagations == pytest.approx(ran.realised_extra_propagations)


def test_steps_that_run_and_steps_that_are_replayed_may_alternate() -> None:
    (method, model), (ran, other) = method_of(0.5), method_of(0.5)
    for step in range(6):
        ran.backward(lambda: loss_on(other, X, Y))
        if step % 2:
            method.count_replayed_step()
        else:
            method.backward(lambda: loss_on(model, X, Y))
    assert counts(method) == counts(ran)


@pytest.mark.parametrize("variant", ["looksam", "friendly", "esam", "ssam_f", "ssam_d"])
def test_sharp_steps_that_differ_among_themselves_are_refused_and_leave_the_counts_alone(variant: str) -> None:
    method, _ = method_of(1.0, variant)
    with pytest.raises(ValueError, match="cannot be replayed"):
        method.count_replayed_step()
    assert method.t == 0


def test_a_gate_that_the_clean_pass_decides_is_refused() -> None:
    method = rst.RST(Network(), 0.1, schedules.ae_sam(), total_steps=5)
    with pytest.raises(ValueError, match="cannot be replayed"):
        method.count_replayed_step()
    assert method.t == 0
