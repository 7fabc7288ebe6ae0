"""Properties of the variants that hold for every gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import assert_bitwise, left
from textbook_variants import Chosen, vector
from torch import Tensor
from variant_cases import ALWAYS, RHO, close, epsilon_of, mask_of, random, step

import rst
from rst import schedules
from rst.variants import ASAM, ESAM, GSAM, SSAMD, SSAMF, LookSAM

SHAPES = st.lists(st.integers(1, 12), min_size=1, max_size=4)

SCALES = st.floats(-6, 6).map(lambda exponent: 10.0**exponent)

laws = settings(max_examples=40)


@given(sizes=SHAPES, seed=st.integers(0, 99), scale=SCALES, alpha=st.floats(0.01, 2))
@laws
def test_gsam_subtracts_the_component_of_the_clean_gradient_orthogonal_to_the_perturbed_one(sizes, seed, scale, alpha):
    model = Chosen(*sizes)
    g, g_s = scale * random(seed, 2, sum(sizes))
    orthogonal = (g_s - step(rst.RST(model, RHO, ALWAYS, variant=GSAM(alpha)), model, g, g_s)) / alpha
    size = g.norm() * g_s.norm()
    assert (orthogonal @ g_s).abs() <= 1e-5 * size
    along = g - orthogonal
    assert (along.norm() * g_s.norm() - (along @ g_s).abs()).abs() <= 1e-5 * size


@given(sizes=SHAPES, seed=st.integers(0, 99), scale=SCALES, alpha=st.floats(0, 2))
@laws
def test_looksam_stores_a_direction_orthogonal_to_the_clean_gradient_and_later_adds_it_with_norm_alpha_g(
    sizes, seed, scale, alpha
):
    model = Chosen(*sizes)
    g, g_s, later = scale * random(seed, 3, sum(sizes))
    method = rst.RST(model, RHO, ALWAYS, variant=LookSAM(k=2, alpha=alpha))
    close(step(method, model, g, g_s) / scale, g_s / scale)
    direction = torch.cat(list(method.variant.state_dict()["directions"][0].values()))
    assert (direction @ g).abs() <= 1e-5 * g.norm() * g_s.norm()
    added = step(method, model, later) - later
    if sum(sizes) > 1:
        close(added / later.norm(), alpha * direction / direction.norm(), 1e-5)


@given(sizes=SHAPES, seed=st.integers(0, 99), scale=SCALES, rho=st.floats(0.1, 10), eta=st.floats(0, 1))
@laws
def test_the_perturbation_of_asam_has_norm_rho_in_units_of_the_weights(sizes, seed, scale, rho, eta):
    """‖T⁻¹ ε‖ = ρ."""
    model = Chosen(*sizes, seed=seed)
    gradients = scale * random(seed + 100, 3, sum(sizes))
    epsilon = epsilon_of(rst.RST(model, rho, ALWAYS, variant=ASAM(eta)), model, gradients)
    assert (epsilon / (vector(model).abs() + eta)).norm().item() == pytest.approx(rho, rel=1e-4)


def test_asam_moves_a_weight_that_is_zero_only_with_an_eta():
    model = Chosen(4)
    with torch.no_grad():
        model.weights[0][1] = 0
    for eta, moves in ((0.0, False), (0.1, True)):
        epsilon = epsilon_of(rst.RST(model, RHO, ALWAYS, variant=ASAM(eta)), model, torch.ones(1, 4).double())
        assert (epsilon != 0).tolist() == [True, moves, True, True]


@pytest.mark.parametrize("kind", [SSAMF, SSAMD])
@given(sizes=SHAPES, seed=st.integers(0, 99), sparsity=st.integers(0, 99), rho=st.floats(0.1, 10))
@laws
def test_ssam_perturbs_the_share_1_minus_sparsity_of_all_weights_by_at_most_rho(kind, sizes, seed, sparsity, rho):
    model = Chosen(*sizes)
    method = rst.RST(model, rho, ALWAYS, total_steps=3, variant=kind(sparsity / 100))
    for _ in range(3):
        epsilon = epsilon_of(method, model, random(seed, 4, sum(sizes)))
        zeros = sum(sizes) - int((epsilon != 0).sum())
        assert sparsity / 100 * sum(sizes) - 1e-9 <= zeros < sparsity / 100 * sum(sizes) + 1
        assert epsilon.norm().item() <= rho * (1 + 1e-9)


@given(sizes=SHAPES, seed=st.integers(0, 99), samples=st.integers(1, 9), scale=SCALES)
@laws
def test_ssam_f_perturbs_the_weights_with_the_largest_fisher_information_over_the_first_samples(
    sizes, seed, samples, scale
):
    model, gradients = Chosen(*sizes), scale * random(seed, 6, sum(sizes))
    perturbed = epsilon_of(rst.RST(model, RHO, ALWAYS, variant=SSAMF(0.5, samples=samples)), model, gradients) != 0
    fisher = gradients[:samples].square().sum(0)
    if perturbed.any() and not perturbed.all():
        assert fisher[perturbed].min() >= fisher[~perturbed].max()


@given(
    sizes=SHAPES,
    seed=st.integers(0, 99),
    sparsity=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    drop=st.floats(0, 1),
    t=st.integers(1, 9),
)
@laws
def test_ssam_d_exchanges_the_weights_with_the_smallest_gradients_for_as_many_others(sizes, seed, sparsity, drop, t):
    model = Chosen(*sizes)
    method = rst.RST(model, RHO, ALWAYS, total_steps=10, seed=seed, variant=SSAMD(sparsity, update_every=1, drop=drop))
    epsilon_of(method, model, random(seed, 4, sum(sizes)))
    old, method.t = mask_of(method), t
    gradients = random(seed + 100, 4, sum(sizes))
    perturbed = epsilon_of(method, model, gradients) != 0
    assert (perturbed == old).all(), "a step that makes a mask is itself perturbed under the old one"
    new = mask_of(method)
    dropped, grown, stayed = old & ~new, new & ~old, old & new
    ones, zeros = int(old.sum()), int((~old).sum())
    due = ones * drop * 0.5 * (1 + math.cos(math.pi * t / 10))
    assert int(new.sum()) == ones
    assert int(dropped.sum()) == int(grown.sum()) == min(math.floor(due), zeros)
    size = gradients.mean(0).abs()
    if dropped.any() and stayed.any():
        assert size[dropped].max() <= size[stayed].min()


def test_the_masks_of_ssam_d_depend_on_the_seed_and_the_step():
    def masks(seed: int) -> list[Tensor]:
        model = Chosen(40)
        method = rst.RST(model, RHO, ALWAYS, total_steps=2, seed=seed, variant=SSAMD(update_every=1))
        result = []
        for t in range(2):
            epsilon_of(method, model, random(t, 4, 40))
            result.append(mask_of(method))
        return result

    assert_bitwise(masks(1), masks(1))
    assert not torch.equal(masks(1)[0], masks(2)[0])
    assert not torch.equal(masks(1)[0], masks(1)[1])


@pytest.mark.parametrize("kind", [SSAMF, SSAMD])
def test_ssam_makes_a_mask_at_the_first_sharp_step_of_every_period(kind):
    model = Chosen(200)
    method = rst.RST(model, RHO, schedules.constant(0.4), total_steps=60, variant=kind(update_every=5))
    mask, changes = None, []
    for t in range(60):
        epsilon_of(method, model, random(t, 6, 200))
        if method.gate[t]:
            if mask is None or not torch.equal(mask_of(method), mask):
                changes.append(t)
            mask = mask_of(method)
    sharp = method.gate.nonzero().flatten().tolist()
    expected = [next((t for t in sharp if begin <= t < begin + 5), None) for begin in range(0, 60, 5)]
    assert changes == [t for t in expected if t is not None]


@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    seed=st.integers(0, 99),
    beta=st.floats(0.2, 1),
    gamma=st.floats(0.05, 1),
    samples=st.integers(1, 12),
    scale=SCALES,
)
@laws
def test_esam_perturbs_whole_tensors_by_rho_over_beta_and_uses_the_samples_whose_loss_rises_most(
    sizes, seed, beta, gamma, samples, scale
):
    model, gradients = Chosen(*sizes), scale * random(seed, samples, sum(sizes))
    method = rst.RST(model, RHO, ALWAYS, seed=seed, variant=ESAM(beta, gamma))
    epsilon = epsilon_of(method, model, gradients)
    inside = [bool((own != 0).any()) for own in epsilon.split(sizes)]
    if any(inside):
        direction = torch.cat([own * kept for own, kept in zip(gradients.mean(0).split(sizes), inside, strict=True)])
        close(epsilon, RHO / beta * direction / direction.norm(), 1e-5)
    count = max(1, math.floor(gamma * samples))
    rows = (gradients @ epsilon).argsort(descending=True)[:count]
    if any(inside) or count == samples:
        close(left(model) / scale, gradients[rows].mean(0) / scale, 1e-9)


def test_esam_draws_its_tensors_at_every_step_with_probability_beta():
    model = Chosen(*[1] * 20)
    method = rst.RST(model, RHO, ALWAYS, variant=ESAM(beta=0.3, gamma=1))
    inside = torch.stack([epsilon_of(method, model, random(t, 2, 20)) != 0 for t in range(100)]).double()
    assert inside.mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 2000))
    assert len(inside.unique(dim=0)) > 90
    assert inside.mean(0).std() < 4 * math.sqrt(0.3 * 0.7 / 100)
    # A tensor is in the sets of two steps in a row with probability beta².
    both = (inside[1:] * inside[:-1]).mean().item()
    assert both == pytest.approx(0.09, abs=4 * math.sqrt(0.09 * 0.91 / 1980))
