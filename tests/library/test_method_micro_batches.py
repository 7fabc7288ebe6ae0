"""Micro-batches: in the body of one loop over passes, or with passes of their own, which are as many devices."""

import pytest
import torch
from textbook import batch, clean_gradient, left, loss_on, mixed_gradient, perceptron
from textbook_variants import (
    Device,
    FriendlySam,
    Sam,
    Ssam,
    SsamD,
    device_of,
    network,
    set_gradient,
    step_gradient,
    vector,
)
from torch import Tensor, nn
from torch.nn import functional as F
from variant_cases import ALWAYS, NEVER, ORACLES, RHO, SEED, STEPS, VARIANTS, close, variants, without_per_sample_loss

import rst
from rst import schedules

X, Y = batch(0, size=12)
MICRO_BATCHES = list(zip(X.chunk(3), Y.chunk(3), strict=True))
QUARTERS, UNEQUAL = [0.25] * 4, [0.5, 0.25, 0.25]


# In the body of one loop over passes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [NEVER, ALWAYS], ids=str)
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_micro_batches_in_the_body_give_the_gradient_of_the_whole_batch(schedule, c):
    model = perceptron()
    method = rst.RST(model, RHO, schedule, gamma_ratio=c)
    method.backward(lambda: loss_on(model, X, Y))
    expected = left(model)
    model.zero_grad()
    for weight in method.passes():
        for x, y in MICRO_BATCHES:
            (weight * loss_on(model, x, y) / 3).backward()
    torch.testing.assert_close(left(model), expected, rtol=1e-9, atol=1e-12)


# With passes of their own ---------------------------------------------------------------------------------------------


def step_by_micro_batches(model: nn.Module, method: rst.RST) -> None:
    """One step of three micro-batches, each of which has passes of its own."""
    for index, (x, y) in enumerate(MICRO_BATCHES):
        for weight in method.passes(advance=index == 2, share=1 / 3):
            (weight * loss_on(model, x, y)).backward()


@pytest.mark.parametrize("c", [1.0, 2.0])
def test_micro_batches_with_passes_of_their_own_are_each_perturbed_by_their_own_gradient(c):
    model = perceptron()
    each = [mixed_gradient(model, lambda x=x, y=y: loss_on(model, x, y) / 3, RHO, c) for x, y in MICRO_BATCHES]
    whole = mixed_gradient(model, lambda: loss_on(model, X, Y), RHO, c)
    model.zero_grad()
    step_by_micro_batches(model, rst.RST(model, RHO, ALWAYS, gamma_ratio=c))
    torch.testing.assert_close(left(model), sum(each), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(left(model), whole, rtol=1e-4)


def test_in_a_plain_step_micro_batches_with_passes_of_their_own_give_the_gradient_of_the_whole_batch():
    model = perceptron()
    expected = clean_gradient(model, lambda: loss_on(model, X, Y))
    model.zero_grad()
    step_by_micro_batches(model, rst.RST(model, RHO, NEVER))
    torch.testing.assert_close(left(model), expected, rtol=1e-9, atol=1e-12)


def test_the_micro_batches_of_a_step_share_t_and_its_gate():
    model = perceptron()
    method = rst.RST(model, RHO, schedules.constant(0.5), total_steps=12)
    passes = []
    for _ in range(12):
        for index, (x, y) in enumerate(MICRO_BATCHES):
            count = 0
            for weight in method.passes(advance=index == 2):
                (weight * loss_on(model, x, y)).backward()
                count += 1
            passes.append(count)
    expected = [2 if is_open else 1 for is_open in method.gate for _ in MICRO_BATCHES]
    assert passes == expected
    assert set(passes) == {1, 2}
    assert method.t == 12


def test_the_passes_of_a_micro_batch_draw_the_same_dropout_masks_and_the_next_one_draws_others():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    method, masks = rst.RST(model, RHO, ALWAYS), []
    for index, (x, y) in enumerate(MICRO_BATCHES):
        for weight in method.passes(advance=index == 2, share=1 / 3):
            masks.append(F.dropout(torch.ones(100)))
            (weight * loss_on(model, x, y)).backward()
    for i in (0, 2, 4):
        assert torch.equal(masks[i], masks[i + 1])
        assert not torch.equal(masks[i], masks[i - 2])


# Against hand-written devices -----------------------------------------------------------------------------------------

SCHEMES = {
    "SAM": (ALWAYS, 1.0),
    "GNR": (ALWAYS, 2.0),
    "RST": (schedules.constant(0.5), 1.0),
    "G-RST": (schedules.constant(0.5), "auto"),
}
mixings = pytest.mark.parametrize("normalise_clean", [False, True], ids=["eq. 7", "normalised"])


class OneAfterAnother:
    """An oracle of SSAM whose devices come one after the other, so that the first alone makes the mask.

    A mask of SSAM-D that the first one exchanges is for the steps to come.
    """

    def __init__(self, oracle: Ssam) -> None:
        self.oracle = oracle

    def sharp(self, model: nn.Module, devices: list[Device], clean: list[Tensor], t: int, rho: float) -> list[Tensor]:
        oracle, before = self.oracle, self.oracle.mask
        result = oracle.sharp(model, devices[:1], clean[:1], t, rho)
        made = oracle.mask
        if isinstance(oracle, SsamD) and before is not None:
            oracle.mask = before
        for device, g in zip(devices[1:], clean[1:], strict=True):
            result += oracle.sharp(model, [device], [g], t, rho)
        oracle.mask = made
        return result


def oracle_of(name: str, shares: list[float] = QUARTERS) -> Sam | OneAfterAnother:
    if name == "friendly":
        return FriendlySam(0.8, 0.7, shares)
    return OneAfterAnother(ORACLES[name]()) if name.startswith("ssam") else ORACLES[name]()


def still_network() -> nn.Module:
    """BatchNorm's running averages stand still, of which every device would have its own."""
    model = network()
    model[2].momentum = 0.0
    return model


def assert_trains_like_devices(
    name: str,
    scheme: str,
    shares: list[float],
    normalise_clean: bool,
    scaler: torch.amp.GradScaler | None = None,
    steps: int = 7,
) -> None:
    """The gradient and the weights of every step, with a micro-batch for each device of the textbook version."""
    schedule, c = SCHEMES[scheme]
    model, expected, oracle = still_network(), still_network(), oracle_of(name, shares)
    optimizer, textbook = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, expected))
    method = rst.RST(
        model,
        RHO,
        schedule,
        c,
        total_steps=STEPS,
        seed=SEED,
        variant=VARIANTS[name](),
        normalise_clean=normalise_clean,
    )
    for t in range(steps):
        devices = [device_of(expected, 10 * t + i) for i in range(len(shares))]
        ratio = 2.0 if c == "auto" else c
        mean = step_gradient(
            oracle, expected, devices, bool(method.gate[t]), t, RHO, ratio, shares, normalise_clean=normalise_clean
        )
        for i, share in enumerate(shares):
            method.backward(device_of(model, 10 * t + i), i == len(shares) - 1, share, scaler)
        if scaler is not None:
            scaler.unscale_(optimizer)
        close(left(model), mean)
        set_gradient(expected, mean)
        textbook.step()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
        close(vector(model), vector(expected))


@mixings
@pytest.mark.parametrize("scheme", SCHEMES)
@variants
def test_four_micro_batches_train_like_four_devices(name, scheme, normalise_clean):
    assert_trains_like_devices(name, scheme, QUARTERS, normalise_clean)


@mixings
@pytest.mark.parametrize("scheme", ["GNR", "G-RST"])
@variants
def test_four_micro_batches_with_a_loss_scale_train_like_four_devices_without_it(name, scheme, normalise_clean):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    assert_trains_like_devices(name, scheme, QUARTERS, normalise_clean, scaler)


@mixings
@pytest.mark.parametrize("scale", [None, 2.0**12])
@variants
def test_a_micro_batch_counts_by_its_share_of_the_step(name, scale, normalise_clean):
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    assert_trains_like_devices(name, "GNR", UNEQUAL, normalise_clean, scaler)


@pytest.mark.parametrize("c", [1.0, 2.0])
@without_per_sample_loss
def test_a_loss_that_the_body_scales_gives_the_scaled_gradient_of_the_devices(name, c):
    """As eq. 7 is the same for every multiple of the loss. ``normalise_clean`` has to be told, by ``scaler``."""
    model, oracle = still_network(), oracle_of(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    method = rst.RST(model, RHO, ALWAYS, c, total_steps=STEPS, seed=SEED, variant=VARIANTS[name]())
    for t in range(4):
        devices = [device_of(model, 10 * t + i) for i in range(4)]
        expected = step_gradient(oracle, model, devices, True, t, RHO, c)
        model.zero_grad()
        for i, losses in enumerate(devices):
            for weight in method.passes(advance=i == 3, share=0.25):
                scaler.scale(weight * losses().mean()).backward()
        close(left(model) / scaler.get_scale(), expected)


def test_a_scaler_that_is_disabled_changes_nothing():
    model = perceptron()
    method, weights = rst.RST(model, RHO, ALWAYS), []
    for weight in method.passes(share=0.5, scaler=torch.amp.GradScaler("cpu", enabled=False)):
        weights.append(weight)
        (weight * loss_on(model, X, Y)).backward()
    assert weights == [0.5, 0.5]


def test_with_a_scaler_the_weights_are_tensors_that_hold_share_ratio_and_scale():
    model = perceptron()
    method, weights = rst.RST(model, RHO, ALWAYS, gamma_ratio=2.0), []
    for weight in method.passes(share=0.5, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**12)):
        weights.append(weight)
        (weight * loss_on(model, X, Y)).backward()
    assert all(isinstance(weight, Tensor) for weight in weights)
    assert [weight.item() for weight in weights] == [2.0**11, 2.0**12]


# Costs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [[1.0], QUARTERS, UNEQUAL], ids=str)
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "ssam_f"])
def test_costs_are_counted_in_passes_over_all_images_of_a_step_however_they_are_divided(name, shares):
    """Here with as many images in every micro-batch as its share asks for."""
    model = network()
    method = rst.RST(model, RHO, ALWAYS, variant=VARIANTS[name]())
    x, y = batch(0, size=32)
    for _ in range(6):
        rows = 0
        for i, share in enumerate(shares):
            own = slice(rows, rows := rows + int(32 * share))

            def losses(index=slice(None), own=own) -> Tensor:
                return F.cross_entropy(model(x[own][index].double()), y[own][index], reduction="none")

            method.backward(losses, i == len(shares) - 1, share)
        model.zero_grad()
    assert method.realised_extra_propagations == pytest.approx(method.expected_extra_propagations)
    assert method.sharp_steps == method.t == 6
    forward = {"looksam": 8, "esam": 6 * 2.5}.get(name, 12)
    backward = {"looksam": 8, "esam": 6 * 1.5}.get(name, 12)
    assert (method.forward_passes, method.backward_passes) == pytest.approx((forward, backward))


@pytest.mark.parametrize("shares", [[1.0], QUARTERS, UNEQUAL], ids=str)
def test_a_step_that_makes_a_mask_of_ssam_f_counts_the_samples_by_their_share(shares):
    """5 of the 8 samples of the first micro-batch, which is a share of the step."""
    model = network()
    method = rst.RST(model, RHO, ALWAYS, total_steps=1, variant=VARIANTS["ssam_f"]())
    for i, share in enumerate(shares):
        method.backward(device_of(model, i), i == len(shares) - 1, share)
    assert method.forward_passes == method.backward_passes == pytest.approx(2 + shares[0] * 5 / 8)
