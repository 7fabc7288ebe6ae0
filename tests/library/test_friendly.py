"""FriendlySAM: its rule against a plain version, over micro-batches, ranks and loss scales, and its state."""

import copy
import math
from functools import partial

import pytest
import torch
from gloo_ranks import results_of_ranks
from textbook import assert_bitwise, perceptron
from textbook_variants import Chosen, FriendlySam, device_of, set_gradient, step_gradient, vector
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from variant_cases import ALWAYS, RHO, SEED, close, random, step

import rst
from rst import schedules
from rst.variants import FriendlySAM, variant_of

SIGMA, DECAY, RANKS = 0.8, 0.7, 2
SOMETIMES = schedules.constant(0.6)


def friendly() -> FriendlySAM:
    return FriendlySAM(SIGMA, DECAY)


def mean_of(method: rst.RST, model: nn.Module) -> Tensor:
    """m with the gradients of the last sharp step, which the next one would add."""
    variant = copy.deepcopy(method.variant)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    variant.begin(parameters, method.t, None, 0)
    return torch.cat([variant.state_dict()["mean"][name].flatten() for name in parameters])


# The rule -------------------------------------------------------------------------------------------------------------


def test_by_default_all_of_the_mean_is_taken_out_and_it_lasts_ten_sharp_steps():
    variant = variant_of("friendly")
    assert (variant.sigma, variant.decay) == (1.0, 0.9)


@pytest.mark.parametrize(("option", "value"), [("sigma", -1.0), ("sigma", math.nan), ("decay", 1.1), ("decay", -0.1)])
def test_an_option_outside_its_range_is_refused_by_name(option, value):
    with pytest.raises(ValueError, match=option):
        FriendlySAM(**{option: value})


def test_a_plain_step_leaves_the_mean_alone():
    model = Chosen(2, 3)
    always, half = (rst.RST(model, RHO, s, total_steps=8, variant=friendly()) for s in (ALWAYS, SOMETIMES))
    gradients = random(0, 8, 5)
    assert set(half.gate.tolist()) == {False, True}
    for t, sharp in enumerate(half.gate.tolist()):
        step(half, model, *[gradients[t]] * (1 + sharp))
        if sharp:
            step(always, model, gradients[t], gradients[t])
        if always.t:
            assert_bitwise(mean_of(half, model), mean_of(always, model))


def test_only_the_chosen_parameters_have_a_mean_and_take_part_in_the_direction():
    model = Chosen(2, 3)
    method = rst.RST(model, RHO, ALWAYS, variant=friendly(), only=lambda name, p: name.endswith("1"))
    gradients, weights = random(0, 4, 5), vector(model)
    for g in gradients[:3]:
        step(method, model, g, g)
    m = method.variant.state_dict()["mean"]
    assert list(m) == ["weights.1"]
    seen = []
    for weight in method.passes():
        seen.append(vector(model))
        (weight * model.losses(gradients[3][None]).mean()).backward()
    expected_mean = (1 - DECAY) * gradients[2] + DECAY * ((1 - DECAY) * gradients[1] + DECAY * gradients[0])
    d = (gradients[3] - SIGMA * expected_mean)[2:]
    close(seen[1] - seen[0], torch.cat([torch.zeros(2).double(), RHO * d / d.norm()]))
    assert_bitwise(vector(model), weights)


def test_a_layer_that_a_pass_skips_has_the_gradient_zero_in_the_mean():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]).double()
    x = random(1, 4, 3)
    method = rst.RST(model, RHO, ALWAYS, variant=friendly())
    for weight in method.passes():
        (weight * model[0](x).square().mean()).backward()
    m = mean_of(method, model)
    assert m[:12].abs().min() > 0
    assert_bitwise(m[12:], torch.zeros(12).double())


# Micro-batches and loss scales ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 2.0**16])
@pytest.mark.parametrize("shares", [[0.25] * 4, [0.5, 0.3, 0.2], [1.0]], ids=str)
def test_the_micro_batches_of_a_step_use_one_mean_and_update_it_once(shares, scale):
    model, expected, m = perceptron(), perceptron(), None
    optimizer, textbook = (torch.optim.SGD(net.parameters(), lr=0.1) for net in (model, expected))
    method = rst.RST(model, RHO, SOMETIMES, 2.0, total_steps=6, seed=SEED, variant=friendly())
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    for t in range(6):
        total, mean = torch.zeros(()), torch.zeros(())
        for i, share in enumerate(shares):
            oracle = FriendlySam(SIGMA, DECAY)
            oracle.m = m
            device = device_of(expected, 10 * t + i)
            total = total + share * step_gradient(oracle, expected, [device], bool(method.gate[t]), t, RHO, 2.0)
            mean = mean + share * step_gradient(oracle, expected, [device], False, t, RHO, 2.0)
        if method.gate[t]:
            m = mean if m is None else DECAY * m + (1 - DECAY) * mean
        set_gradient(expected, total)
        textbook.step()
        last = len(shares) - 1
        for i, share in enumerate(shares):
            method.backward(device_of(model, 10 * t + i), advance=i == last, share=share, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        close(vector(model), vector(expected), 1e-7 if scale else 1e-10)
    close(mean_of(method, model), m, 1e-7 if scale else 1e-10)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("first", [0, 3], ids=["in the first step", "later"])
def test_a_step_whose_gradient_is_not_finite_leaves_the_mean_alone(first, value):
    model = Chosen(2, 3)
    method, expected = (rst.RST(model, RHO, ALWAYS, variant=friendly()) for _ in range(2))
    gradients = random(0, 8, 5)
    bad = gradients[7].clone()
    bad[1] = value
    for t in range(6):
        if t == first:
            step(method, model, bad, bad)
        step(method, model, gradients[t], gradients[t])
        step(expected, model, gradients[t], gradients[t])
        assert_bitwise(mean_of(method, model), mean_of(expected, model))


def test_a_step_that_failed_and_is_run_again_counts_once():
    model = Chosen(2, 3)
    method, expected = (rst.RST(model, RHO, ALWAYS, variant=friendly()) for _ in range(2))
    gradients = random(0, 4, 5)
    for t in range(4):
        if t == 2:
            with pytest.raises(ValueError, match="zip"):
                step(method, model, gradients[0])  # which has no gradient for the perturbed pass
        step(method, model, gradients[t], gradients[t])
        step(expected, model, gradients[t], gradients[t])
    assert_bitwise(mean_of(method, model), mean_of(expected, model))


# Ranks ----------------------------------------------------------------------------------------------------------------


def run_rank(rank: int) -> dict:
    return {
        f"{micro_batches}, {synced}": run_steps(rank, micro_batches, synced)
        for micro_batches in (1, 2)
        for synced in (False, True)
    }


def run_steps(rank: int, micro_batches: int, synced: bool) -> dict:
    model = perceptron()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = rst.RST(
        parallel, RHO, SOMETIMES, 2.0, total_steps=5, seed=SEED, variant=friendly(), sync_perturbation=synced
    )
    for t in range(5):
        for i in range(micro_batches):
            device = device_of(parallel, 100 * rank + 10 * t + i)
            method.backward(device, advance=i == micro_batches - 1, share=1 / micro_batches)
        optimizer.step()
        optimizer.zero_grad()
    return {"weights": vector(model), "mean": method.variant.state_dict()["mean"]}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return results_of_ranks(run_rank, RANKS, tmp_path_factory.mktemp("ranks of FriendlySAM"))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_ranks_and_micro_batches_are_devices_with_one_mean(ranks, micro_batches):
    model, oracle = perceptron(), FriendlySam(SIGMA, DECAY)
    gate = rst.RST(model, RHO, SOMETIMES, total_steps=5, seed=SEED).gate.tolist()
    for t in range(5):
        devices = [device_of(model, 100 * r + 10 * t + i) for r in range(RANKS) for i in range(micro_batches)]
        set_gradient(model, step_gradient(oracle, model, devices, gate[t], t, RHO, 2.0))
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    for rank in ranks:
        close(rank[f"{micro_batches}, False"]["weights"], vector(model))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_with_sync_perturbation_ranks_are_one_device(ranks, micro_batches):
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = rst.RST(model, RHO, SOMETIMES, 2.0, total_steps=5, seed=SEED, variant=friendly())
    for t in range(5):
        for i in range(micro_batches):
            devices = [device_of(model, 100 * r + 10 * t + i) for r in range(RANKS)]
            both = partial(lambda devices: torch.cat([device() for device in devices]), devices)
            method.backward(both, advance=i == micro_batches - 1, share=1 / micro_batches)
        optimizer.step()
        optimizer.zero_grad()
    for rank in ranks:
        close(rank[f"{micro_batches}, True"]["weights"], vector(model))


@pytest.mark.parametrize("name", ["1, False", "2, False", "1, True", "2, True"])
def test_weights_and_mean_are_equal_on_all_ranks_bit_for_bit(ranks, name):
    assert_bitwise(ranks[1][name], ranks[0][name])
