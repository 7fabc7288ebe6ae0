"""What a sharp step of each variant costs, in passes over a micro-batch."""

import pytest
from textbook_variants import device_of, network
from torch import Tensor, nn
from variant_cases import ALWAYS, RHO, SCHEMES, SEED, STEPS, VARIANTS, variants

import rst
from rst import schedules
from rst.variants import SSAMF, LookSAM


class Counter:
    """Counts the forward and backward propagations of a network, in units of one over a batch of 8."""

    def __init__(self, model: nn.Module) -> None:
        self.forward = self.backward = 0.0
        self.calls = 0
        model.register_forward_hook(self._forward)

    def _forward(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.calls += 1
        self.forward += len(output) / 8
        if output.requires_grad:
            output.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self.backward += len(gradient) / 8


@pytest.mark.parametrize("scheme", ["alone", "G-RST"])
@variants
def test_the_method_counts_the_propagations_that_the_network_makes(name, scheme):
    schedule, c = SCHEMES[scheme]
    model = network()
    counter = Counter(model)
    method = rst.RST(model, RHO, schedule, c, total_steps=STEPS, seed=SEED, variant=VARIANTS[name]())
    for t in range(STEPS):
        method.backward(device_of(model, t))
        assert (method.forward_passes, method.backward_passes) == pytest.approx((counter.forward, counter.backward))
    assert counter.forward > STEPS


COSTS = {
    "sam": 1,
    "asam": 1,
    "gsam": 1,
    "looksam": 1 / 3,
    "friendly": 1,
    "esam": 1 / 2 + 1 / 3,
    "ssam_f": 1,
    "ssam_d": 1,
}


@variants
def test_the_expected_extra_cost_is_the_mean_of_p_times_the_extra_cost_of_a_sharp_step(name):
    method = rst.RST(network(), RHO, schedules.linear(0.3), total_steps=30, variant=VARIANTS[name]())
    assert method.expected_extra_propagations == pytest.approx(schedules.linear(0.3).mean(30) * COSTS[name])
    assert method.drawn_extra_propagations == pytest.approx(method.gate.double().mean().item() * COSTS[name])


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "ssam_f"])
def test_the_propagations_counted_are_those_expected(name):
    """A forward propagation counts as a third of a pass, a backward propagation as two thirds."""
    model = network()
    method = rst.RST(model, RHO, ALWAYS, variant=VARIANTS[name]())
    for t in range(6):
        method.backward(device_of(model, t))
    passes = (method.forward_passes + 2 * method.backward_passes) / 3
    assert passes / 6 - 1 == pytest.approx(method.expected_extra_propagations)
    assert method.realised_extra_propagations == pytest.approx(method.expected_extra_propagations)


def test_ssam_f_takes_single_samples_only_in_the_steps_that_make_a_mask():
    model = network()
    method = rst.RST(model, RHO, ALWAYS, variant=SSAMF(update_every=3, samples=5))
    counts = []
    for t in range(4):
        before = method.forward_passes
        method.backward(device_of(model, t))
        counts.append(method.forward_passes - before)
    assert counts == pytest.approx([2 + 5 / 8, 2, 2, 2 + 5 / 8])


def test_looksam_runs_the_network_once_in_the_sharp_steps_between_those_of_sam():
    model = network()
    counter = Counter(model)
    method = rst.RST(model, RHO, ALWAYS, variant=LookSAM(k=4))
    calls = []
    for t in range(9):
        before = counter.calls
        method.backward(device_of(model, t))
        calls.append(counter.calls - before)
    assert calls == [2, 1, 1, 1, 2, 1, 1, 1, 2]
