"""Every variant of the sharp step: its rule against a plain version, and the cases in which it is SAM."""

import copy

import pytest
import torch
from textbook import Network, assert_bitwise, left, perceptron, state
from textbook_variants import (
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
    close,
    variants,
    without_per_sample_loss,
)

import rst
from rst import schedules
from rst.perturbation import Vector
from rst.variants import ASAM, ESAM, GSAM, SSAMD, SSAMF, FriendlySAM, LookSAM, Variant


def falling(t: int, total_steps: int | None) -> float:
    """A rho that falls over the training, as that of GSAM's authors."""
    return 0.2 - 0.1 * t / (total_steps or STEPS)


RADII = {"asam": 0.5, "gsam": falling}

# The rule of each variant ---------------------------------------------------------------------------------------------


def state_on_one_device(variant: Variant) -> dict:
    """The state of a variant on one device, in the form of the textbook versions."""
    kept = variant.state_dict()
    if "mask" in kept:
        return {"mask": torch.cat([m.flatten() for m in kept["mask"].values()])}
    if "counts" in kept:
        return {"count": kept["counts"][0], "kept": [torch.cat([v.flatten() for v in kept["directions"][0].values()])]}
    return kept


@pytest.mark.parametrize("scheme", SCHEMES)
@variants
def test_training_equals_the_textbook_version(name, scheme):
    """In weights, buffers and momentum after every step, and in the variant's state at the end; with BatchNorm."""
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
    if name != "friendly":  # whose mean has the last gradient only at the next sharp step: see `test_friendly.py`
        close(state_on_one_device(method.variant), oracle.state())


def test_all_variants_and_schemes_train_to_different_weights():
    """Else the test above would pass for a variant that is taken for another."""

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


@without_per_sample_loss
def test_passes_and_backward_leave_the_same_gradient(name):
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


# Cases in which a variant is SAM --------------------------------------------------------------------------------------

SAME_AS_SAM = {
    "FriendlySAM, sigma = 0": lambda: FriendlySAM(sigma=0),
    "GSAM, alpha = 0": lambda: GSAM(alpha=0),
    "LookSAM, k = 1": lambda: LookSAM(k=1),
    "SSAM-F, sparsity = 0": lambda: SSAMF(sparsity=0),
    "SSAM-D, sparsity = 0": lambda: SSAMD(sparsity=0),
    "ESAM, nothing masked, all samples": lambda: ESAM(beta=1, gamma=1),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", SAME_AS_SAM)
def test_trains_like_sam(name, scheme):
    schedule, c = SCHEMES[scheme]
    close(weights_after(SAME_AS_SAM[name](), schedule=schedule, c=c), weights_after("sam", schedule=schedule, c=c))


def test_asam_is_sam_where_every_weight_is_1_or_minus_1():
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


def test_asam_with_a_large_eta_is_sam_with_a_radius_that_is_eta_times_as_large():
    close(weights_after(ASAM(eta=1e9), rho=RHO / 1e9), weights_after("sam"), 1e-7)


@variants
def test_with_p_0_training_equals_the_plain_optimizer_and_the_state_of_the_variant_does_not_change(name):
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
def test_a_plain_step_between_sharp_ones_does_not_change_the_state_of_the_variant(name):
    model = network()
    method = rst.RST(model, RHO, schedules.constant(0.5), total_steps=STEPS, seed=SEED, variant=VARIANTS[name]())
    before = copy.deepcopy(method.variant.state_dict())
    for t in range(STEPS):
        method.backward(device_of(model, t))
        if not method.gate[t]:
            assert_bitwise(method.variant.state_dict(), before)
        before = copy.deepcopy(method.variant.state_dict())


@variants
def test_an_automatic_c_does_not_depend_on_the_cost_of_the_variant(name):
    method = rst.RST(network(), RHO, schedules.linear(0.3), "auto", total_steps=50, variant=VARIANTS[name]())
    assert method.gamma_ratio == pytest.approx(1 / schedules.linear(0.3).mean(50))


# A new variant --------------------------------------------------------------------------------------------------------


class MaxNormSAM(Variant):
    """Perturbs within a ball of the maximum norm in place of the 2-norm: ε = ρ sign(g)."""

    def perturb(self, gradient: Vector, weights: Vector, scratch: Vector, rho: float, factor: float | Tensor) -> None:
        """Turn g into ρ sign(g)."""
        torch._foreach_sign_(gradient)
        torch._foreach_mul_(gradient, rho)


class MaxNorm(Sam):
    """The plain version of it."""

    def epsilon(self, theta: Tensor, g: Tensor, rho: float) -> Tensor:
        return rho * g.sign()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_new_variant_needs_only_a_rule_for_the_perturbation(scheme):
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
