"""Gradients of the variants in special cases: not finite, missing in some pass, or of several micro-batches."""

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from textbook import Network, assert_bitwise, clean_gradient, left, perceptron, perturbed_gradient
from textbook_variants import Chosen, device_of, network, set_gradient, step_gradient, vector
from torch import Tensor, nn
from variant_cases import (
    ALWAYS,
    ORACLES,
    RHO,
    VARIANTS,
    close,
    combining,
    epsilon_of,
    mask_of,
    random,
    step,
    variants,
    without_per_sample_loss,
)

import rst
from rst import schedules
from rst.variants import SSAMD, SSAMF, LookSAM

# Gradients that are not finite, or zero -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("number", [0, 1], ids=["clean", "perturbed"])
def test_looksam_keeps_its_old_direction_where_the_new_one_is_not_finite(number, value):
    model = Chosen(2, 3)
    method = rst.RST(model, RHO, ALWAYS, variant=LookSAM(k=2))
    first = random(0, 6, 5)
    step(method, model, first[0], first[1])
    kept = copy.deepcopy(method.variant.state_dict()["directions"])
    step(method, model, first[2])
    bad = [first[3].clone(), first[4].clone()]
    bad[number][1] = value
    assert not step(method, model, *bad).isfinite().all(), "a loss scaler must find the overflow"
    assert_bitwise(method.variant.state_dict()["directions"], kept)
    close(step(method, model, first[5]), first[5] + 0.7 * first[5].norm() * unit(torch.cat(list(kept[0].values()))))


def unit(v: Tensor) -> Tensor:
    return v / v.norm()


def test_looksam_takes_plain_steps_as_long_as_no_direction_was_finite():
    """As when a loss scaler starts with too large a scale: the direction is zero up to the next SAM step."""
    model = Chosen(2, 3)
    method = rst.RST(model, RHO, ALWAYS, variant=LookSAM(k=3))
    g = random(0, 6, 5)
    step(method, model, torch.full((5,), math.inf, dtype=torch.float64), g[0])
    assert_bitwise(step(method, model, g[1]), g[1])
    assert_bitwise(step(method, model, g[2]), g[2])
    close(step(method, model, g[3], g[4]), g[4])
    v = g[4] - g[4] @ unit(g[3]) * unit(g[3])
    close(step(method, model, g[5]), g[5] + 0.7 * g[5].norm() * unit(v))


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("kind", [SSAMF, SSAMD])
def test_ssam_keeps_its_old_mask_where_a_gradient_is_not_finite_and_makes_one_at_the_next_sharp_step(kind, value):
    """As in the first steps under a loss scaler, whose overflows would else choose the mask of a whole period."""
    model = Chosen(40)
    method = rst.RST(model, RHO, ALWAYS, total_steps=9, variant=kind(update_every=3))
    masks = []
    for t in range(6):
        gradients = random(t, 4, 40)
        if t == 3:
            gradients[0, 7] = value
        epsilon_of(method, model, gradients)
        masks.append(mask_of(method))
    changed = [not torch.equal(*pair) for pair in pairwise(masks)]
    assert changed == [False, False, False, True, False]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_ssam_f_perturbs_all_weights_as_long_as_it_has_no_mask(value):
    model = Chosen(40)
    method = rst.RST(model, RHO, ALWAYS, total_steps=9, variant=SSAMF(update_every=3))
    first = random(0, 4, 40)
    first[0, 7] = value
    epsilon_of(method, model, first)
    assert method.variant.state_dict() == {"mask": {}, "due": 0}
    epsilon_of(method, model, random(1, 4, 40))
    assert mask_of(method).sum() == 20


@variants
def test_a_zero_gradient_gives_no_perturbation_and_no_nan(name):
    model = Chosen(2, 3)
    method = rst.RST(model, RHO, ALWAYS, 2.0, total_steps=4, variant=VARIANTS[name]())
    for _ in range(4):
        assert_bitwise(epsilon_of(method, model, torch.zeros(4, 5).double()), torch.zeros(5).double())
        assert_bitwise(left(model), torch.zeros(5).double())


@pytest.mark.parametrize("overflow", [(0, 0), (0, 1), (1, 0), (3, 0), (3, 1)], ids=str)
@pytest.mark.parametrize("c", [1.0, 2.0])
@combining
def test_after_an_overflow_in_any_pass_the_scaler_skips_the_step_and_training_continues(name, c, overflow):
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


@without_per_sample_loss
def test_a_loss_scaler_changes_the_training_by_rounding_only(name):
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


# Layers that some passes skip -----------------------------------------------------------------------------------------


def layers() -> tuple[nn.ModuleList, Callable[[bool], Tensor]]:
    """A body and a layer that a pass may skip, as with stochastic depth; and the loss with or without that layer."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    return model, lambda with_layer: (model[1](model[0](x)) if with_layer else model[0](x)).square().mean()


@pytest.mark.parametrize("used_in", [0, 1], ids=["clean", "perturbed"])
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_gsam_takes_the_gradient_of_a_layer_as_zero_in_the_pass_that_skips_it(used_in, c):
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
def test_looksam_takes_the_gradient_of_a_layer_as_zero_in_the_pass_that_skips_it(used_in, c):
    """A layer that a whole step skips takes no part in it, nor does its direction: it gets no gradient."""
    model, loss = layers()
    g = clean_gradient(model, lambda: loss(used_in == 0))
    g_s = perturbed_gradient(model, lambda: loss(used_in == 1), g, RHO)
    later = clean_gradient(model, lambda: loss(used_in == 2))
    direction = g_s - g_s @ unit(g) * unit(g)
    if used_in != 2:
        direction[model[0].weight.numel() + model[0].bias.numel() :] = 0
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
def test_a_layer_that_no_pass_uses_gets_no_gradient(name):
    """So that weight decay leaves it alone, as it does without the method."""
    model = Network()
    method = rst.RST(model, RHO, ALWAYS, 2.0, variant=VARIANTS[name]())
    for t in range(2):
        method.backward(device_of(model, t))
    assert [p.grad for p in model.unused.parameters()] == [None, None]


# Micro-batches with passes of their own -------------------------------------------------------------------------------


@combining
def test_every_micro_batch_has_a_state_of_its_own_like_a_device(name):
    """A gradient from before the step, here 3, is kept in the sum."""
    model, expected, oracle = perceptron(), perceptron(), ORACLES[name]()
    optimizer, textbook = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, expected))
    method = rst.RST(model, RHO, schedules.constant(0.7), 2.0, total_steps=8, variant=VARIANTS[name]())
    for t in range(8):
        devices = [device_of(expected, 10 * t + i) for i in range(3)]
        mean = step_gradient(oracle, expected, devices, bool(method.gate[t]), t, RHO, 2.0)
        set_gradient(expected, mean)
        set_gradient(model, torch.full_like(mean, 3.0))
        for i in range(3):
            losses = device_of(model, 10 * t + i)
            for weight in method.passes(advance=i == 2):
                (weight * losses().mean() / 3).backward()
        close(left(model) - 3.0, mean)
        set_gradient(model, left(model) - 3.0)
        textbook.step()
        optimizer.step()
        close(vector(model), vector(expected))
    assert method.t == 8


@variants
def test_the_micro_batches_of_a_step_share_its_mask_or_set_of_tensors(name):
    """Each is perturbed by its own gradient, but in the same weights."""
    model = Chosen(*[2] * 10)
    method = rst.RST(model, RHO, ALWAYS, total_steps=4, variant=VARIANTS[name]())
    for t in range(3):
        patterns = [epsilon_of(method, model, random(10 * t + i, 8, 20), advance=i == 2) != 0 for i in range(3)]
        if name == "ssam_d":  # the first micro-batch makes the mask and is itself perturbed under the old one
            patterns = patterns[1:]
        assert all(torch.equal(pattern, patterns[0]) for pattern in patterns)
