"""Every variant of the sharp step: its rule against a plain version, its reductions, its arguments."""

import copy
import math

import pytest
import torch
from textbook import Network, assert_bitwise, clean_gradient, perceptron, state
from textbook_variants import (
    Gsam,
    Sam,
    device_of,
    network,
    set_gradient,
    step_gradient,
    vector,
)
from torch import Tensor
from variant_cases import (
    ALWAYS,
    NEVER,
    ORACLES,
    RHO,
    SCHEMES,
    SEED,
    STEPS,
    VARIANTS,
    by_passes,
    close,
    combining,
    left,
    variants,
)

import rst
from rst import schedules
from rst.variants import ASAM, ESAM, GSAM, NAMES, SSAMD, SSAMF, LookSAM, Variant


def falling(t: int, total_steps: int | None) -> float:
    """A rho that falls over the training, as GSAM's authors let it."""
    return 0.2 - 0.1 * t / (total_steps or STEPS)


RADII = {"asam": 0.5, "gsam": falling}

by_sample = pytest.mark.parametrize("name", [name for name in VARIANTS if NAMES[name].by_sample])


# ---------------------------------------------------------------------------------------------- the rule of each one


def remembered(variant: Variant) -> dict:
    """What a variant remembers of one device, in the form of the oracles."""
    kept = variant.state_dict()
    if "mask" in kept:
        return {"mask": torch.cat([m.flatten() for m in kept["mask"]])}
    if "counts" in kept:
        return {"count": kept["counts"][0], "kept": [torch.cat([v.flatten() for v in kept["directions"][0]])]}
    return kept


@pytest.mark.parametrize("scheme", SCHEMES)
@variants
def test_a_training_is_the_textbook_one_with_all_that_it_remembers(name, scheme):
    """Weights, buffers and momentum after every step, and the state of the variant, on a network with BatchNorm."""
    schedule, c = SCHEMES[scheme]
    rho = RADII.get(name, RHO)
    model, expected, oracle = network(), network(), ORACLES[name]()
    optimizer, textbook = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, expected))
    method = rst.RST(model, rho, schedule, c, total_steps=STEPS, seed=SEED, variant=VARIANTS[name]())
    for t in range(STEPS):
        radius = rho(t, STEPS) if callable(rho) else rho
        sharp = bool(method.gate[t])
        set_gradient(
            expected,
            step_gradient(oracle, expected, [device_of(expected, t)], sharp, t, radius, 2.0 if c == "auto" else 1.0),
        )
        textbook.step()
        method.backward(device_of(model, t))
        optimizer.step()
        optimizer.zero_grad()
        close(state(model, optimizer), state(expected, textbook))
    close(remembered(method.variant), oracle.state())


def test_the_variants_and_their_schemes_differ():
    """So that the test above can fail."""

    def end(name: str, scheme: str) -> Tensor:
        schedule, c = SCHEMES[scheme]
        return weights_after(VARIANTS[name](), schedule=schedule, c=c)

    ends = [end(name, scheme) for name in VARIANTS for scheme in SCHEMES]
    for i, one in enumerate(ends):
        for other in ends[:i]:
            assert (one - other).abs().max() > 1e-5


def weights_after(
    variant: Variant | str, rho: float = RHO, schedule: schedules.Schedule = ALWAYS, c: float | str = 1.0
) -> Tensor:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = rst.RST(model, rho, schedule, c, total_steps=STEPS, seed=SEED, variant=variant)
    for t in range(STEPS):
        method.backward(device_of(model, t))
        optimizer.step()
        optimizer.zero_grad()
    return vector(model)


@by_passes
def test_the_loop_over_passes_and_backward_leave_the_same_gradient(name):
    def gradients(loop: bool) -> list[Tensor]:
        model = network()
        method = rst.RST(model, RHO, ALWAYS, 2.0, variant=VARIANTS[name]())
        result = []
        for t in range(5):
            device = device_of(model, t)
            model.zero_grad()
            if loop:
                for weight in method.passes():
                    (weight * device().mean()).backward()
            else:
                close(method.backward(device), device().mean().detach(), 0)
            result.append(left(model))
        return result

    assert_bitwise(gradients(loop=True), gradients(loop=False))


def test_a_clean_gradient_that_is_normalised_is_mixed_with_any_sharp_one():
    model = network()
    g = clean_gradient(model, lambda: device_of(model, 0)().mean())
    (s,) = Gsam(0.4).sharp(model, [device_of(model, 0)], [g], 0, RHO)
    model.zero_grad()
    rst.RST(model, RHO, ALWAYS, 2.0, variant="gsam", normalise_clean=True).backward(device_of(model, 0))
    close(left(model), -g / g.norm() + 2 * s)


# -------------------------------------------------------------------------------------------------------- reductions

SAME_AS_SAM = {
    "GSAM, alpha = 0": lambda: GSAM(alpha=0),
    "LookSAM, k = 1": lambda: LookSAM(k=1),
    "SSAM-F, sparsity = 0": lambda: SSAMF(sparsity=0),
    "SSAM-D, sparsity = 0": lambda: SSAMD(sparsity=0),
    "ESAM, nothing masked, all samples": lambda: ESAM(beta=1, gamma=1),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", SAME_AS_SAM)
def test_is_sam(name, scheme):
    schedule, c = SCHEMES[scheme]
    close(weights_after(SAME_AS_SAM[name](), schedule=schedule, c=c), weights_after("sam", schedule=schedule, c=c))


def test_asam_where_every_weight_is_one_or_minus_one_is_sam():
    model = perceptron()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.where(p < 0, -1.0, 1.0))
    gradients = []
    for variant in ("sam", "asam"):
        model.zero_grad()
        rst.RST(model, RHO, ALWAYS, variant=variant).backward(device_of(model, 0))
        gradients.append(left(model))
    close(gradients[1], gradients[0], 1e-12)


def test_asam_of_a_large_eta_is_sam_of_a_radius_times_eta():
    close(weights_after(ASAM(eta=1e9), rho=RHO / 1e9), weights_after("sam"), 1e-7)


@variants
def test_a_gate_that_never_opens_is_bitwise_the_plain_optimizer_and_its_state_does_not_move(name):
    def train(wrapped: bool) -> dict:
        model = Network()
        optimizer = torch.optim.SGD(model.groups(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        method = rst.RST(model, RHO, NEVER, 2.0, variant=VARIANTS[name]())
        fresh = copy.deepcopy(method.variant.state_dict())
        torch.manual_seed(5)
        for t in range(5):
            device = device_of(model, t)
            if wrapped:
                method.backward(device)
            else:
                device().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert_bitwise(method.variant.state_dict(), fresh)
        assert (method.forward_passes, method.backward_passes) == ((5, 5) if wrapped else (0, 0))
        return state(model, optimizer)

    assert_bitwise(train(wrapped=True), train(wrapped=False))


@variants
def test_a_closed_gate_between_open_ones_does_not_move_its_state(name):
    model = network()
    method = rst.RST(model, RHO, schedules.constant(0.5), total_steps=STEPS, seed=SEED, variant=VARIANTS[name]())
    before = copy.deepcopy(method.variant.state_dict())
    for t in range(STEPS):
        method.backward(device_of(model, t))
        if not method.gate[t]:
            assert_bitwise(method.variant.state_dict(), before)
        before = copy.deepcopy(method.variant.state_dict())


@variants
def test_the_automatic_ratio_is_one_over_the_mean_of_the_schedule_whatever_a_variant_costs(name):
    method = rst.RST(network(), RHO, schedules.linear(0.3), "auto", total_steps=50, variant=VARIANTS[name]())
    assert method.gamma_ratio == pytest.approx(1 / schedules.linear(0.3).mean(50))


# ---------------------------------------------------------------------------------------------- names and bad values

BAD = [
    (lambda: LookSAM(k=0), "k must be an integer from 1, got 0"),
    (lambda: LookSAM(k=2.5), "k must be an integer from 1, got 2.5"),
    (lambda: LookSAM(alpha=-0.1), "alpha must be a number from 0, got -0.1"),
    (lambda: GSAM(alpha=-0.1), "alpha must be a number from 0, got -0.1"),
    (lambda: GSAM(alpha=math.nan), "alpha must be a number from 0, got nan"),
    (lambda: ASAM(eta=-0.1), "eta must be a number from 0, got -0.1"),
    (lambda: ESAM(beta=0), "beta .* above 0, got 0"),
    (lambda: ESAM(gamma=0), "gamma .* above 0, got .*0"),
    (lambda: ESAM(beta=1.5), r"beta must be a number in \[0, 1\], got 1.5"),
    (lambda: ESAM(gamma=-0.5), r"gamma must be a number in \[0, 1\], got -0.5"),
    (lambda: SSAMF(sparsity=1.0), "sparsity must be below 1"),
    (lambda: SSAMD(sparsity=1.0), "sparsity must be below 1"),
    (lambda: SSAMF(sparsity=-0.1), r"sparsity must be a number in \[0, 1\], got -0.1"),
    (lambda: SSAMF(samples=0), "samples must be an integer from 1, got 0"),
    (lambda: SSAMF(update_every=0), "update_every must be a number of steps from 1, got 0"),
    (lambda: SSAMD(update_every=0), "update_every must be a number of steps from 1, got 0"),
    (lambda: SSAMD(drop=1.5), r"drop must be a number in \[0, 1\], got 1.5"),
]


@pytest.mark.parametrize(("make", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_a_bad_value_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stands_for_a_variant_with_its_defaults(name):
    method = rst.RST(network(), RHO, ALWAYS, total_steps=1, variant=name)
    method.backward(device_of(method.model, 0))
    assert type(method.variant) is NAMES[name]
    assert left(method.model).isfinite().all()


@pytest.mark.parametrize("value", ["sams", None, ASAM])
def test_an_unknown_variant_is_refused_with_the_names_there_are(value):
    with pytest.raises(ValueError, match="sam, asam, gsam, looksam, esam, ssam_f, ssam_d, or an instance"):
        rst.RST(network(), RHO, ALWAYS, variant=value)


@pytest.mark.parametrize("schedule", [NEVER, ALWAYS], ids=str)
@by_sample
def test_a_variant_that_looks_at_samples_is_refused_by_passes_with_what_to_write_instead(name, schedule):
    method = rst.RST(network(), RHO, schedule, variant=VARIANTS[name]())
    with pytest.raises(ValueError, match=r"needs the loss of each sample.*backward\(lambda index"):
        method.passes()


@by_sample
def test_a_closure_that_gives_one_loss_where_those_of_the_samples_are_needed_is_refused(name):
    model = network()
    method = rst.RST(model, RHO, ALWAYS, variant=VARIANTS[name]())
    with pytest.raises(ValueError, match="loss of each sample"):
        method.backward(lambda index: device_of(model, 0)(index).mean())


@combining
def test_a_perturbation_that_is_synchronised_is_refused_by_a_variant_that_combines(name):
    with pytest.raises(ValueError, match="sync_perturbation does not go with"):
        rst.RST(network(), RHO, ALWAYS, variant=VARIANTS[name](), sync_perturbation=True)


# ----------------------------------------------------------------------------------------------- a variant of one's own


class MaxNormSAM(Variant):
    """The ball of the maximum norm in place of the 2-norm: ε = ρ sign(g)."""

    def perturb(self, out: list[Tensor], weights: list[Tensor], gradients: list[Tensor], rho: float) -> None:
        """Write ρ sign(g)."""
        torch._foreach_copy_(out, gradients)
        torch._foreach_sign_(out)
        torch._foreach_mul_(out, rho)


class MaxNorm(Sam):
    """The same, on a vector."""

    def epsilon(self, theta: Tensor, g: Tensor, rho: float) -> Tensor:
        return rho * g.sign()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_variant_of_ones_own_is_a_rule_for_the_perturbation(scheme):
    schedule, c = SCHEMES[scheme]
    model = network()
    method = rst.RST(model, 0.01, schedule, c, total_steps=STEPS, seed=SEED, variant=MaxNormSAM())
    for t in range(STEPS):
        other = copy.deepcopy(model)
        expected = step_gradient(
            MaxNorm(), other, [device_of(other, t)], bool(method.gate[t]), t, 0.01, 2.0 if c == "auto" else 1.0
        )
        model.zero_grad()
        for weight in method.passes():
            (weight * device_of(model, t)().mean()).backward()
        close(left(model), expected)
