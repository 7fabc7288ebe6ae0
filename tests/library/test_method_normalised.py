"""`normalise_clean`, which mixes (1 - c) g/‖g‖ + c g_s; over micro-batches see `test_method_micro_batches.py`."""

import pytest
import torch
from gloo_ranks import results_of_ranks
from textbook import (
    Network,
    assert_bitwise,
    batch,
    clean_gradient,
    left,
    loss_on,
    perceptron,
    perturbed_gradient,
)
from textbook_variants import Gsam, device_of, network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import rst
from rst import schedules

RHO = 0.1
X, Y = batch(0, size=12)


def normalised(model: nn.Module, c: float = 2.0, schedule: schedules.Schedule | None = None, **arguments) -> rst.RST:
    return rst.RST(model, RHO, schedule or schedules.always(), c, normalise_clean=True, **arguments)


def expected_gradient(model: nn.Module, c: float) -> Tensor:
    clean = clean_gradient(model, lambda: loss_on(model, X, Y))
    sharp = perturbed_gradient(model, lambda: loss_on(model, X, Y), clean, RHO)
    return (1 - c) * clean / clean.norm() + c * sharp


@pytest.mark.parametrize("c", [0.0, 0.8, 2.0])
def test_the_clean_gradient_is_divided_by_its_norm(c):
    model = perceptron()
    expected = expected_gradient(model, c)
    model.zero_grad()
    normalised(model, c).backward(lambda: loss_on(model, X, Y))
    torch.testing.assert_close(left(model), expected, rtol=1e-9, atol=1e-11)


def test_the_clean_gradient_is_divided_by_its_norm_for_a_variant_that_combines():
    model = network()
    g = clean_gradient(model, lambda: device_of(model, 0)().mean())
    (sharp,) = Gsam(0.4).sharp(model, [device_of(model, 0)], [g], 0, RHO)
    model.zero_grad()
    normalised(model, variant="gsam").backward(device_of(model, 0))
    torch.testing.assert_close(left(model), -g / g.norm() + 2 * sharp, rtol=1e-10, atol=1e-10)


def test_micro_batches_in_the_body_of_one_loop_over_passes_equal_the_whole_batch():
    model = perceptron()
    expected = expected_gradient(model, 2.0)
    model.zero_grad()
    for weight in normalised(model).passes():
        for x, y in zip(X.chunk(3), Y.chunk(3), strict=True):
            (weight * loss_on(model, x, y) / 3).backward()
    torch.testing.assert_close(left(model), expected, rtol=1e-9, atol=1e-11)


def test_with_c_1_it_changes_nothing():
    gradients = []
    for flag in (False, True):
        model = Network()
        torch.manual_seed(5)
        method = rst.RST(model, RHO, schedules.always(), normalise_clean=flag)
        method.backward(lambda model=model: loss_on(model, X, Y), advance=False)
        method.backward(lambda model=model: loss_on(model, X, Y))
        gradients.append(left(model))
    assert_bitwise(gradients[1], gradients[0])


# Loss scales and ranks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2.0**4, 2.0**16])
@pytest.mark.parametrize("variant", ["sam", "gsam"])
def test_a_loss_scale_given_as_scaler_is_a_factor_of_the_whole_sum(variant, scale):
    gradients = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=scale)):
        model = perceptron()
        normalised(model, variant=variant).backward(lambda model=model: loss_on(model, X, Y), scaler=scaler)
        gradients.append(left(model))
    torch.testing.assert_close(gradients[1] / scale, gradients[0], rtol=1e-9, atol=1e-11)


def test_in_half_precision_a_loss_scale_changes_the_gradient_by_rounding_only():
    """In bfloat16, whose rounding does not depend on the scale."""
    gradients = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**16)):
        model = perceptron().float()
        with torch.autocast("cpu", torch.bfloat16):
            normalised(model).backward(lambda model=model: loss_on(model, X, Y), scaler=scaler)
        gradients.append(left(model))
    torch.testing.assert_close(gradients[1] / 2.0**16, gradients[0], rtol=1e-5, atol=1e-6)


def test_a_zero_gradient_stays_zero():
    model = perceptron()
    normalised(model).backward(lambda: 0 * loss_on(model, X, Y))
    assert not left(model).any()


@pytest.mark.parametrize("schedule", [schedules.never(), schedules.constant(0.5)], ids=str)
def test_the_gradient_of_a_plain_step_is_not_divided_by_its_norm(schedule):
    model = perceptron()
    method = normalised(model, schedule=schedule, total_steps=12)
    expected = clean_gradient(model, lambda: loss_on(model, X, Y))
    for _ in range(12):
        model.zero_grad()
        is_sharp = method.sharp
        method.backward(lambda: loss_on(model, X, Y))
        assert torch.equal(left(model), expected) == (not is_sharp)


RANKS = [(X[:6], Y[:6]), (X[6:], Y[6:])]


def gradients_of_a_rank(rank: int) -> list[Tensor]:
    """What a step of two ranks leaves: perturbed along the own gradient and along the mean; with GSAM."""
    x, y = RANKS[rank]
    gradients = []
    for arguments in ({}, {"sync_perturbation": True}, {"variant": "gsam"}):
        model = perceptron()
        normalised(wrapped := DistributedDataParallel(model), **arguments).backward(
            lambda wrapped=wrapped: F.cross_entropy(wrapped(x.double()), y)
        )
        gradients.append(left(model))
    return gradients


def test_on_several_ranks_each_divides_the_gradient_that_it_is_perturbed_along(tmp_path):
    model = perceptron()
    losses = [lambda x=x, y=y: loss_on(model, x, y) for x, y in RANKS]
    clean = [clean_gradient(model, loss) for loss in losses]
    mean = (clean[0] + clean[1]) / 2
    local = [perturbed_gradient(model, loss, g, RHO) for loss, g in zip(losses, clean, strict=True)]
    synchronised = [perturbed_gradient(model, loss, mean, RHO) for loss in losses]
    normalised_clean = (clean[0] / clean[0].norm() + clean[1] / clean[1].norm()) / 2
    gsam = [g_s - 0.4 * (g - g @ g_s * g_s / g_s.square().sum()) for g, g_s in zip(clean, local, strict=True)]
    expected = [
        -normalised_clean + local[0] + local[1],
        -mean / mean.norm() + synchronised[0] + synchronised[1],
        -normalised_clean + gsam[0] + gsam[1],
    ]
    for gradients in results_of_ranks(gradients_of_a_rank, 2, tmp_path):
        torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-11)


def test_the_norm_is_that_of_all_parameters_where_only_some_are_perturbed():
    model, plain = perceptron(), perceptron()
    first = next(name for name, _ in model.named_parameters())
    clean = clean_gradient(model, lambda: loss_on(model, X, Y))
    model.zero_grad()
    normalised(model, 2.0, only=lambda name, _: name == first).backward(lambda: loss_on(model, X, Y))
    method = rst.RST(plain, RHO, schedules.always(), 2.0, only=lambda name, _: name == first)
    method.backward(lambda: loss_on(plain, X, Y))
    torch.testing.assert_close(left(model), left(plain) + clean - clean / clean.norm())
