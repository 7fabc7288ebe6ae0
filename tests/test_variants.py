"""Every variant of the sharp step: its rule against a plain version, its laws, and what any sharp step promises."""

import copy
import io
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import Network, assert_bitwise, clean_gradient, gradient, perceptron, perturbed_gradient, state
from textbook_variants import (
    ALL,
    Asam,
    Chosen,
    Esam,
    Gsam,
    LookSam,
    Sam,
    SsamD,
    SsamF,
    device_of,
    network,
    set_gradient,
    step_gradient,
    vector,
)
from torch import Tensor, nn
from torch.nn import functional as F

import rst
from rst import schedules
from rst.streams import stream
from rst.variants import ASAM, ESAM, GSAM, NAMES, SAM, SSAMD, SSAMF, LookSAM, Variant

STEPS, SEED, RHO = 20, 1, 0.1
ALWAYS, NEVER = schedules.always(), schedules.never()


def falling(t: int, total_steps: int | None) -> float:
    """A rho that falls over the training, as GSAM's authors let it."""
    return 0.2 - 0.1 * t / (total_steps or STEPS)


def draws(t: int) -> list[float]:
    """One for each tensor of `network`."""
    return torch.rand(8, generator=stream("esam", SEED, t)).tolist()


def noise(t: int) -> Tensor:
    """One for each weight of `network`."""
    generator = stream("ssam", SEED, t)
    return torch.cat([torch.rand(p.shape, generator=generator).flatten() for p in network().parameters()])


VARIANTS: dict[str, Callable[[], Variant]] = {
    "sam": SAM,
    "asam": lambda: ASAM(eta=0.01),
    "gsam": lambda: GSAM(alpha=0.4),
    "looksam": lambda: LookSAM(k=3, alpha=0.7),
    "esam": lambda: ESAM(beta=0.6, gamma=0.5),
    "ssam_f": lambda: SSAMF(sparsity=0.3, update_every=3, samples=5),
    "ssam_d": lambda: SSAMD(sparsity=0.3, update_every=3, drop=0.5),
}
ORACLES: dict[str, Callable[[], Sam]] = {
    "sam": Sam,
    "asam": lambda: Asam(eta=0.01),
    "gsam": lambda: Gsam(alpha=0.4),
    "looksam": lambda: LookSam(k=3, alpha=0.7),
    "esam": lambda: Esam(0.6, 0.5, draws),
    "ssam_f": lambda: SsamF(0.3, 3, samples=5),
    "ssam_d": lambda: SsamD(0.3, 3, 0.5, noise, STEPS),
}
RADII = {"asam": 0.5, "gsam": falling}
variants = pytest.mark.parametrize("name", VARIANTS)
by_passes = pytest.mark.parametrize("name", [name for name in VARIANTS if not NAMES[name].by_sample])
by_sample = pytest.mark.parametrize("name", [name for name in VARIANTS if NAMES[name].by_sample])
combining = pytest.mark.parametrize("name", ["gsam", "looksam"])


def left(model: nn.Module) -> Tensor:
    return gradient([p for p in model.parameters() if p.requires_grad]).clone()


def close(actual: object, expected: object, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------------------------------- the rule of each one

SCHEMES = {"alone": (ALWAYS, 1.0), "RST": (schedules.constant(0.5), 1.0), "G-RST": (schedules.constant(0.5), "auto")}


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


# ------------------------------------------------------------------------------------- laws, for any gradient at all

SHAPES = st.lists(st.integers(1, 12), min_size=1, max_size=4)
SCALES = st.floats(-6, 6).map(lambda exponent: 10.0**exponent)
laws = settings(deadline=None, max_examples=40)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(method: rst.RST, model: Chosen, *gradients: Tensor) -> Tensor:
    """The gradient that a step leaves whose passes have these gradients, [weights] each."""
    model.zero_grad()
    for weight, g in zip(method.passes(), gradients, strict=True):
        (weight * model.losses(g[None]).mean()).backward()
    return left(model)


def epsilon_of(method: rst.RST, model: Chosen, gradients: Tensor, advance: bool = True) -> Tensor:
    """ε of a sharp step over samples of these gradients, [n, weights]."""
    seen = []

    def closure(rows=ALL) -> Tensor:
        seen.append(vector(model))
        return model.losses(gradients[rows])

    model.zero_grad()
    method.backward(closure, advance)
    return seen[-1] - seen[0]


@given(sizes=SHAPES, seed=st.integers(0, 99), scale=SCALES, alpha=st.floats(0.01, 2))
@laws
def test_gsam_takes_off_a_part_orthogonal_to_the_perturbed_gradient_and_leaves_the_clean_one_without_it(
    sizes, seed, scale, alpha
):
    model = Chosen(*sizes)
    g, g_s = scale * random(seed, 2, sum(sizes))
    orthogonal = (g_s - step(rst.RST(model, RHO, ALWAYS, variant=GSAM(alpha)), model, g, g_s)) / alpha
    size = g.norm() * g_s.norm()
    assert (orthogonal @ g_s).abs() <= 1e-5 * size
    along = g - orthogonal
    assert (along.norm() * g_s.norm() - (along @ g_s).abs()).abs() <= 1e-5 * size


@given(sizes=SHAPES, seed=st.integers(0, 99), scale=SCALES, alpha=st.floats(0, 2))
@laws
def test_looksam_keeps_a_direction_orthogonal_to_the_clean_gradient_and_adds_alpha_norms_of_g_of_it(
    sizes, seed, scale, alpha
):
    model = Chosen(*sizes)
    g, g_s, later = scale * random(seed, 3, sum(sizes))
    method = rst.RST(model, RHO, ALWAYS, variant=LookSAM(k=2, alpha=alpha))
    close(step(method, model, g, g_s) / scale, g_s / scale)
    direction = torch.cat(method.variant.state_dict()["directions"][0])
    assert (direction @ g).abs() <= 1e-5 * g.norm() * g_s.norm()
    added = step(method, model, later) - later
    if sum(sizes) > 1:
        close(added / later.norm(), alpha * direction / direction.norm(), 1e-5)


@given(sizes=SHAPES, seed=st.integers(0, 99), scale=SCALES, rho=st.floats(0.1, 10), eta=st.floats(0, 1))
@laws
def test_asam_perturbs_to_the_radius_in_units_of_the_weights(sizes, seed, scale, rho, eta):
    """‖T⁻¹ ε‖ = ρ."""
    model = Chosen(*sizes, seed=seed)
    gradients = scale * random(seed + 100, 3, sum(sizes))
    epsilon = epsilon_of(rst.RST(model, rho, ALWAYS, variant=ASAM(eta)), model, gradients)
    assert (epsilon / (vector(model).abs() + eta)).norm().item() == pytest.approx(rho, rel=1e-4)


def test_asam_leaves_a_weight_that_is_zero_where_it_is_unless_there_is_an_eta():
    model = Chosen(4)
    with torch.no_grad():
        model.weights[0][1] = 0
    for eta, moves in ((0.0, False), (0.1, True)):
        epsilon = epsilon_of(rst.RST(model, RHO, ALWAYS, variant=ASAM(eta)), model, torch.ones(1, 4).double())
        assert (epsilon != 0).tolist() == [True, moves, True, True]


@pytest.mark.parametrize("kind", [SSAMF, SSAMD])
@given(sizes=SHAPES, seed=st.integers(0, 99), sparsity=st.integers(0, 99), rho=st.floats(0.1, 10))
@laws
def test_ssam_perturbs_one_less_the_sparsity_of_all_weights_together_within_the_radius(
    kind, sizes, seed, sparsity, rho
):
    model = Chosen(*sizes)
    method = rst.RST(model, rho, ALWAYS, total_steps=3, variant=kind(sparsity / 100))
    for _ in range(3):
        epsilon = epsilon_of(method, model, random(seed, 4, sum(sizes)))
        zeros = sum(sizes) - int((epsilon != 0).sum())
        assert sparsity / 100 * sum(sizes) - 1e-9 <= zeros < sparsity / 100 * sum(sizes) + 1
        assert epsilon.norm().item() <= rho * (1 + 1e-9)


@given(sizes=SHAPES, seed=st.integers(0, 99), samples=st.integers(1, 9), scale=SCALES)
@laws
def test_ssam_f_perturbs_the_weights_of_the_largest_fisher_information_over_the_first_samples(
    sizes, seed, samples, scale
):
    model, gradients = Chosen(*sizes), scale * random(seed, 6, sum(sizes))
    perturbed = epsilon_of(rst.RST(model, RHO, ALWAYS, variant=SSAMF(0.5, samples=samples)), model, gradients) != 0
    fisher = gradients[:samples].square().sum(0)
    if perturbed.any() and not perturbed.all():
        assert fisher[perturbed].min() >= fisher[~perturbed].max()


def mask_of(method: rst.RST) -> Tensor:
    return torch.cat([m.flatten() for m in method.variant.state_dict()["mask"]])


@given(
    sizes=SHAPES,
    seed=st.integers(0, 99),
    sparsity=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    drop=st.floats(0, 1),
    t=st.integers(1, 9),
)
@laws
def test_ssam_d_drops_its_smallest_gradients_for_as_many_weights_that_were_not_perturbed(
    sizes, seed, sparsity, drop, t
):
    model = Chosen(*sizes)
    method = rst.RST(model, RHO, ALWAYS, total_steps=10, seed=seed, variant=SSAMD(sparsity, update_every=1, drop=drop))
    epsilon_of(method, model, random(seed, 4, sum(sizes)))
    old, method.t = mask_of(method), t
    gradients = random(seed + 100, 4, sum(sizes))
    assert ((epsilon_of(method, model, gradients) != 0) == old).all(), "a step is perturbed under the mask it found"
    new = mask_of(method)
    dropped, grown, stayed = old & ~new, new & ~old, old & new
    ones, zeros = int(old.sum()), int((~old).sum())
    due = ones * drop * 0.5 * (1 + math.cos(math.pi * t / 10))
    assert int(new.sum()) == ones
    assert int(dropped.sum()) == int(grown.sum()) == min(math.floor(due), zeros)
    size = gradients.mean(0).abs()
    if dropped.any() and stayed.any():
        assert size[dropped].max() <= size[stayed].min()


def test_ssam_d_draws_where_it_starts_and_grows_from_the_seed():
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
def test_ssam_makes_a_mask_at_the_first_sharp_step_that_is_due(kind):
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
def test_esam_perturbs_whole_tensors_to_the_radius_over_beta_and_keeps_the_samples_that_rise_most(
    sizes, seed, beta, gamma, samples, scale
):
    model, gradients = Chosen(*sizes), scale * random(seed, samples, sum(sizes))
    method = rst.RST(model, RHO, ALWAYS, seed=seed, variant=ESAM(beta, gamma))
    epsilon = epsilon_of(method, model, gradients)
    inside = [bool((part != 0).any()) for part in epsilon.split(sizes)]
    if any(inside):
        direction = torch.cat([part * kept for part, kept in zip(gradients.mean(0).split(sizes), inside, strict=True)])
        close(epsilon, RHO / beta * direction / direction.norm(), 1e-5)
    count = max(1, math.floor(gamma * samples))
    rows = (gradients @ epsilon).argsort(descending=True)[:count]
    if any(inside) or count == samples:
        close(left(model) / scale, gradients[rows].mean(0) / scale, 1e-9)


def test_esam_draws_its_tensors_anew_at_every_step_with_frequency_beta():
    model = Chosen(*[1] * 20)
    method = rst.RST(model, RHO, ALWAYS, variant=ESAM(beta=0.3, gamma=1))
    inside = torch.stack([epsilon_of(method, model, random(t, 2, 20)) != 0 for t in range(100)]).double()
    assert inside.mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 2000))
    assert len(inside.unique(dim=0)) > 90
    assert inside.mean(0).std() < 4 * math.sqrt(0.3 * 0.7 / 100)
    # The next step is independent of this one.
    both = (inside[1:] * inside[:-1]).mean().item()
    assert both == pytest.approx(0.09, abs=4 * math.sqrt(0.09 * 0.91 / 1980))


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
