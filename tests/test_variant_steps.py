"""What a sharp step of any variant costs, remembers, survives and leaves alone."""

import copy
import io
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from textbook import Network, assert_bitwise, clean_gradient, perceptron, perturbed_gradient, state
from textbook_variants import (
    ALL,
    Chosen,
    device_of,
    network,
    set_gradient,
    step_gradient,
    vector,
)
from torch import Tensor, nn
from torch.nn import functional as F
from variant_cases import (
    ALWAYS,
    ORACLES,
    RHO,
    SCHEMES,
    SEED,
    STEPS,
    VARIANTS,
    by_passes,
    close,
    combining,
    epsilon_of,
    left,
    mask_of,
    random,
    step,
    variants,
)

import rst
from rst import schedules
from rst.variants import SSAMD, SSAMF, LookSAM

# ----------------------------------------------------------------------------------------------------------- the cost


class Counter:
    """Forward and backward passes of a network, in batches of 8."""

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
def test_the_passes_are_counted_as_they_happen(name, scheme):
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
    "esam": 1 / 2 + 1 / 3,
    "ssam_f": 1,
    "ssam_d": 1,
}


@variants
def test_the_expected_extra_cost_is_the_mean_of_the_schedule_times_that_of_a_sharp_step(name):
    method = rst.RST(network(), RHO, schedules.linear(0.3), total_steps=30, variant=VARIANTS[name]())
    assert method.expected_extra_propagations == pytest.approx(schedules.linear(0.3).mean(30) * COSTS[name])
    assert method.realised_extra_propagations == pytest.approx(method.gate.double().mean().item() * COSTS[name])


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "ssam_f"])
def test_the_passes_counted_are_the_passes_expected(name):
    """A forward is a third of a pass, a backward two thirds."""
    model = network()
    method = rst.RST(model, RHO, ALWAYS, variant=VARIANTS[name]())
    for t in range(6):
        method.backward(device_of(model, t))
    passes = (method.forward_passes + 2 * method.backward_passes) / 3
    assert passes / 6 - 1 == pytest.approx(method.expected_extra_propagations)


def test_ssam_f_spends_its_samples_where_it_makes_a_mask():
    model = network()
    method = rst.RST(model, RHO, ALWAYS, variant=SSAMF(update_every=3, samples=5))
    counts = []
    for t in range(4):
        before = method.forward_passes
        method.backward(device_of(model, t))
        counts.append(method.forward_passes - before)
    assert counts == pytest.approx([2 + 5 / 8, 2, 2, 2 + 5 / 8])


def test_looksam_runs_the_network_once_on_the_sharp_steps_between():
    model = network()
    counter = Counter(model)
    method = rst.RST(model, RHO, ALWAYS, variant=LookSAM(k=4))
    calls = []
    for t in range(9):
        before = counter.calls
        method.backward(device_of(model, t))
        calls.append(counter.calls - before)
    assert calls == [2, 1, 1, 1, 2, 1, 1, 1, 2]


# --------------------------------------------------------------------------------------------------------- the state


class Training:
    """A network with dropout, its optimizer and the method under a gate that is half open."""

    def __init__(self, name: str) -> None:
        self.model = Network()
        self.optimizer = torch.optim.SGD(self.model.groups(), lr=0.1, momentum=0.9)
        self.method = rst.RST(
            self.model, RHO, schedules.constant(0.7), "auto", total_steps=10, seed=1, variant=VARIANTS[name]()
        )
        torch.manual_seed(7)

    def run_to(self, end: int) -> None:
        while self.method.t < end:
            self.method.backward(device_of(self.model, self.method.t))
            self.optimizer.step()
            self.optimizer.zero_grad()

    def save(self) -> dict:
        file = io.BytesIO()
        torch.save(state(self.model, self.optimizer) | {"method": self.method.state_dict()}, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def load(self, checkpoint: dict) -> None:
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.method.load_state_dict(checkpoint["method"])
        torch.set_rng_state(checkpoint["random"])


@variants
def test_stopping_at_any_step_and_continuing_equals_never_stopping(name):
    """Also between two refreshes of LookSAM and two masks of SSAM, and through a file that holds no code."""
    first, checkpoints = Training(name), []
    for end in range(11):
        first.run_to(end)
        checkpoints.append(first.save())
    for checkpoint in checkpoints[1:-1:2]:
        torch.manual_seed(99)
        second = Training(name)
        second.load(checkpoint)
        second.run_to(10)
        assert_bitwise(second.save(), checkpoints[-1])


@variants
def test_a_state_does_not_change_with_the_training_that_goes_on(name):
    training = Training(name)
    training.run_to(4)
    taken = training.method.state_dict()
    copied = copy.deepcopy(taken)
    training.run_to(10)
    assert_bitwise(taken, copied)


@pytest.mark.parametrize("name", ["looksam", "ssam_f", "ssam_d"])
def test_a_state_goes_to_where_the_weights_are(name):
    """As when a checkpoint that was read on the CPU meets a model on an accelerator; "meta" stands for one here."""
    training = Training(name)
    training.run_to(4)
    other = rst.RST(Network().to("meta"), RHO, ALWAYS, variant=VARIANTS[name]())
    other.load_state_dict(training.method.state_dict())
    kept = other.variant.state_dict()
    tensors = kept["mask"] if "mask" in kept else kept["directions"][0]
    assert tensors
    assert {tensor.device.type for tensor in tensors} == {"meta"}


# ------------------------------------------------------------------------------------- gradients that are not finite


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("number", [0, 1], ids=["clean", "perturbed"])
def test_looksam_keeps_its_direction_where_a_new_one_is_not_finite(number, value):
    model = Chosen(2, 3)
    method = rst.RST(model, RHO, ALWAYS, variant=LookSAM(k=2))
    first = random(0, 6, 5)
    step(method, model, first[0], first[1])
    kept = copy.deepcopy(method.variant.state_dict()["directions"])
    step(method, model, first[2])
    bad = [first[3].clone(), first[4].clone()]
    bad[number][1] = value
    assert not step(method, model, *bad).isfinite().all(), "a loss scaler must see it"
    assert_bitwise(method.variant.state_dict()["directions"], kept)
    close(step(method, model, first[5]), first[5] + 0.7 * first[5].norm() * unit(torch.cat(kept[0])))


def unit(v: Tensor) -> Tensor:
    return v / v.norm()


def test_looksam_without_a_direction_takes_plain_steps_until_it_finds_one():
    """As where a loss scaler begins too high: the steps up to the next refresh have the clean gradient alone."""
    model = Chosen(2, 3)
    method = rst.RST(model, RHO, ALWAYS, variant=LookSAM(k=3))
    g = random(0, 6, 5)
    step(method, model, torch.full((5,), math.inf, dtype=torch.float64), g[0])
    assert_bitwise(step(method, model, g[1]), g[1])
    assert_bitwise(step(method, model, g[2]), g[2])
    close(step(method, model, g[3], g[4]), g[4])
    v = g[4] - g[4] @ unit(g[3]) * unit(g[3])
    close(step(method, model, g[5]), g[5] + 0.7 * g[5].norm() * unit(v))


@variants
def test_a_zero_gradient_perturbs_nothing_and_leaves_no_nan(name):
    model = Chosen(2, 3)
    method = rst.RST(model, RHO, ALWAYS, 2.0, total_steps=4, variant=VARIANTS[name]())
    for _ in range(4):
        assert_bitwise(epsilon_of(method, model, torch.zeros(4, 5).double()), torch.zeros(5).double())
        assert_bitwise(left(model), torch.zeros(5).double())


@pytest.mark.parametrize("overflow", [(0, 0), (0, 1), (1, 0), (3, 0), (3, 1)], ids=str)
@pytest.mark.parametrize("c", [1.0, 2.0])
@combining
def test_an_overflow_in_any_pass_skips_the_step_and_the_training_goes_on(name, c, overflow):
    model = perceptron().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    method = rst.RST(model, RHO, ALWAYS, c, variant=VARIANTS[name]())
    history = [vector(model)]
    for t in range(6):
        for number, weight in enumerate(method.passes()):
            loss = device_of(model, t)().mean()
            scaler.scale(weight * (loss * math.inf if (t, number) == overflow else loss)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        history.append(vector(model))
    moved = [not torch.equal(before, after) for before, after in pairwise(history)]
    assert moved == [t != overflow[0] for t in range(6)]
    assert history[-1].isfinite().all()
    assert scaler.get_scale() == 2.0**11


@by_passes
def test_a_loss_scaler_changes_nothing_but_rounding(name):
    def train(scale: float) -> Tensor:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        method = rst.RST(model, RHO, ALWAYS, 2.0, total_steps=8, variant=VARIANTS[name]())
        for t in range(8):
            for weight in method.passes():
                scaler.scale(weight * device_of(model, t)().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return vector(model)

    close(train(2.0**16), train(1.0), 1e-8)


# ------------------------------------------------------------------------------------- gradients in some passes only


def layers() -> tuple[nn.ModuleList, Callable[[bool], Tensor]]:
    """A body and a layer that takes part in a pass or does not, as with stochastic depth; and the loss of either."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    return model, lambda whole: (model[1](model[0](x)) if whole else model[0](x)).square().mean()


@pytest.mark.parametrize("used_in", [0, 1], ids=["clean", "perturbed"])
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_gsam_counts_a_layer_as_zero_in_the_pass_that_skips_it(used_in, c):
    model, loss = layers()
    g = clean_gradient(model, lambda: loss(used_in == 0))
    g_s = perturbed_gradient(model, lambda: loss(used_in == 1), g, RHO)
    model.zero_grad()
    before = vector(model)
    method = rst.RST(model, RHO, ALWAYS, c, variant="gsam")
    for number, weight in enumerate(method.passes()):
        (weight * loss(used_in == number)).backward()
    close(left(model), (1 - c) * g + c * (g_s - 0.4 * (g - g @ unit(g_s) * unit(g_s))))
    assert_bitwise(vector(model), before)


@pytest.mark.parametrize("used_in", [0, 1, 2], ids=["clean", "perturbed", "next clean"])
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_looksam_counts_a_layer_as_zero_in_the_pass_that_skips_it(used_in, c):
    model, loss = layers()
    g = clean_gradient(model, lambda: loss(used_in == 0))
    g_s = perturbed_gradient(model, lambda: loss(used_in == 1), g, RHO)
    later = clean_gradient(model, lambda: loss(used_in == 2))
    direction = g_s - g_s @ unit(g) * unit(g)
    method = rst.RST(model, RHO, ALWAYS, c, variant="looksam")
    gradients, number = [], 0
    for _ in range(2):
        model.zero_grad()
        for weight in method.passes():
            (weight * loss(used_in == number)).backward()
            number += 1
        gradients.append(left(model))
    close(gradients, [(1 - c) * g + c * g_s, later + c * 0.7 * later.norm() * unit(direction)])


@variants
def test_a_layer_that_is_never_used_has_no_gradient(name):
    """So that weight decay does not shrink it, as it does not without the method."""
    model = Network()
    method = rst.RST(model, RHO, ALWAYS, 2.0, variant=VARIANTS[name]())
    for t in range(2):
        method.backward(device_of(model, t))
    assert [p.grad for p in model.unused.parameters()] == [None, None]


# ------------------------------------------------------------------------------------------- micro-batches, outside


@combining
def test_micro_batches_outside_are_as_many_devices_with_a_state_each_and_a_gradient_from_before_survives(name):
    model, expected, oracle = perceptron(), perceptron(), ORACLES[name]()
    optimizer, textbook = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, expected))
    method = rst.RST(model, RHO, schedules.constant(0.7), 2.0, total_steps=8, variant=VARIANTS[name]())
    for t in range(8):
        devices = [device_of(expected, 10 * t + part) for part in range(3)]
        mean = step_gradient(oracle, expected, devices, bool(method.gate[t]), t, RHO, 2.0)
        set_gradient(expected, mean)
        set_gradient(model, torch.full_like(mean, 3.0))
        for part in range(3):
            losses = device_of(model, 10 * t + part)
            for weight in method.passes(advance=part == 2):
                (weight * losses().mean() / 3).backward()
        close(left(model) - 3.0, mean)
        set_gradient(model, left(model) - 3.0)
        textbook.step()
        optimizer.step()
        close(vector(model), vector(expected))
    assert method.t == 8


@variants
def test_micro_batches_outside_share_what_a_step_draws(name):
    """Each is perturbed by its own gradient, under one mask and one set of tensors."""
    model = Chosen(*[2] * 10)
    method = rst.RST(model, RHO, ALWAYS, total_steps=4, variant=VARIANTS[name]())
    for t in range(3):
        patterns = [
            epsilon_of(method, model, random(10 * t + part, 8, 20), advance=part == 2) != 0 for part in range(3)
        ]
        if name == "ssam_d":  # the micro-batch that makes a mask is itself perturbed under the old one
            patterns = patterns[1:]
        assert all(torch.equal(pattern, patterns[0]) for pattern in patterns)


# ------------------------------------------------------------------- what a step leaves alone, and what ends it early


class Remembering(nn.Module):
    """Dropout that keeps its masks, and buffers that every forward pass moves, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(36, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.masks: list[Tensor] = []
        self.fails_at = self.done = 0

    def forward(self, x: Tensor) -> Tensor:
        self.done += 1
        if self.done == self.fails_at:
            raise ZeroDivisionError
        self.calls = self.calls + 1
        x = self.norm(self.first(x.flatten(1))).tanh()
        mask = F.dropout(torch.ones_like(x), 0.5, self.training)
        if self.training:
            self.masks.append(mask)
        return self.last(x * mask)


@variants
def test_buffers_random_numbers_modes_and_weights_are_as_after_one_plain_step(name):
    plain, model = Remembering(), Remembering()
    model.last.eval()
    method = rst.RST(model, RHO, ALWAYS, total_steps=4, variant=VARIANTS[name]())
    before = vector(model)
    for t in range(4):
        torch.manual_seed(t)
        device_of(plain, t)()
        expected = torch.get_rng_state()
        torch.manual_seed(t)
        method.backward(device_of(model, t))
        assert_bitwise(torch.get_rng_state(), expected)
    assert_bitwise(dict(model.named_buffers()), dict(plain.named_buffers()))
    assert_bitwise(vector(model), before)
    assert [m.training for m in model.modules()] == [True, True, True, False]


@variants
def test_the_passes_over_the_whole_batch_have_the_same_dropout_masks(name):
    """ESAM's last pass has fewer samples, and so masks of its own."""
    model = Remembering()
    method = rst.RST(model, RHO, ALWAYS, total_steps=2, variant=VARIANTS[name]())
    method.backward(device_of(model, 0))
    whole = [mask for mask in model.masks if len(mask) == 8]
    assert len(whole) == 2
    assert_bitwise(whole[1], whole[0])
    model.masks.clear()
    method.backward(device_of(model, 0))
    assert not torch.equal(model.masks[0], whole[0])


@variants
def test_an_exception_in_any_forward_leaves_all_as_a_plain_pass_does_and_the_step_can_be_run_again(name):
    """Forwards of the first step: the clean one, Fisher's samples, ESAM's selection, the perturbed one."""

    def prepared() -> tuple[Remembering, rst.RST]:
        model = Remembering()
        torch.manual_seed(1)
        return model, rst.RST(model, RHO, ALWAYS, total_steps=2, variant=VARIANTS[name]())

    undisturbed, method = prepared()
    method.backward(device_of(undisturbed, 0))
    assert undisturbed.done == {"esam": 3, "ssam_f": 7}.get(name, 2)
    for failing in range(1, undisturbed.done + 1):
        model, method = prepared()
        before, model.fails_at = vector(model), failing
        with pytest.raises(ZeroDivisionError) as held:
            method.backward(device_of(model, 0))
        assert held.tb is not None
        assert_bitwise(vector(model), before)
        assert method.t == 0
        assert all(m.training for m in model.modules())
        assert model.calls == (failing > 1)

        model.load_state_dict(Remembering().state_dict())
        model.zero_grad()
        torch.manual_seed(1)
        method.backward(device_of(model, 0))
        assert_bitwise(left(model), left(undisturbed))


@pytest.mark.parametrize("kind", [SSAMF, SSAMD])
def test_a_mask_that_was_due_is_made_also_when_the_step_failed_the_first_time(kind):
    model = Chosen(40)
    method = rst.RST(model, RHO, ALWAYS, total_steps=4, variant=kind(update_every=2))
    for t in range(2):
        epsilon_of(method, model, random(t, 4, 40))
    old = mask_of(method)

    def failing(rows=ALL) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        method.backward(failing)
    epsilon_of(method, model, random(2, 4, 40))
    assert not torch.equal(mask_of(method), old)


@variants
def test_a_step_that_was_left_between_its_micro_batches_begins_anew_after_loading(name):
    model = perceptron()
    method = rst.RST(model, RHO, ALWAYS, total_steps=4, variant=VARIANTS[name]())
    other = rst.RST(model, RHO, ALWAYS, total_steps=4, variant=VARIANTS[name]())
    saved = copy.deepcopy(other.state_dict())
    other.backward(device_of(model, 5), advance=False)
    other.load_state_dict(saved)
    gradients = []
    for m in (method, other):
        model.zero_grad()
        m.backward(device_of(model, 0))
        gradients.append(left(model))
    assert_bitwise(gradients[1], gradients[0])
    assert_bitwise(other.state_dict(), method.state_dict())


@variants
def test_autocast_round_the_whole_step_does_not_serve_weights_of_another_pass(name):
    def run(cached: bool) -> list[Tensor]:
        model = perceptron().float()
        method = rst.RST(model, 1.0, ALWAYS, total_steps=3, variant=VARIANTS[name]())
        result = []
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            for t in range(3):
                model.zero_grad()
                method.backward(device_of(model, t))
                result.append(left(model))
        return result

    assert_bitwise(run(cached=True), run(cached=False))
