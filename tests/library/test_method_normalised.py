"""`normalise_clean`, which mixes (1 - c) g/‖g‖ + c g_s: right in one perturbation a step on one rank, else refused."""

import pytest
import torch
from gloo_ranks import results_of_ranks
from textbook import Network, assert_bitwise, batch, clean_gradient, gradient, loss_on, perceptron, perturbed_gradient
from textbook_variants import Gsam, device_of, network
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rst
from rst import schedules

RHO = 0.1
X, Y = batch(0, size=12)


def normalised(model: nn.Module, c: float = 2.0, schedule: schedules.Schedule | None = None, **arguments) -> rst.RST:
    return rst.RST(model, RHO, schedule or schedules.always(), c, normalise_clean=True, **arguments)


def left(model: nn.Module) -> Tensor:
    return gradient(list(model.parameters())).clone()


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


# What is refused ------------------------------------------------------------------------------------------------------

SENTENCE = r"normalise_clean with gamma_ratio 2 .* run all micro-batches in the body of one passes\(\), or leave"


@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("variant", ["sam", "gsam"])
def test_a_micro_batch_that_leaves_its_step_open_is_refused_whether_or_not_the_step_is_sharp(variant, p):
    model = perceptron()
    method = normalised(model, schedule=schedules.constant(p), total_steps=12, variant=variant)
    while method.t < 12:
        with pytest.raises(ValueError, match=SENTENCE):
            method.passes(advance=False)
        with pytest.raises(ValueError, match=SENTENCE):
            method.backward(lambda: loss_on(model, X, Y), advance=False)
        assert all(p.grad is None for p in model.parameters())
        method.backward(lambda: loss_on(model, X, Y))
        model.zero_grad()


def test_the_last_micro_batch_is_refused_where_the_step_already_has_others():
    """As when gamma_ratio is set to another value within a step."""
    model = perceptron()
    method = normalised(model, c=1.0)
    method.backward(lambda: loss_on(model, X, Y), advance=False)
    method.gamma_ratio = 2.0
    with pytest.raises(ValueError, match=SENTENCE):
        method.backward(lambda: loss_on(model, X, Y))
    assert method.t == 0


def test_micro_batches_are_accepted_where_no_step_is_sharp():
    model = perceptron()
    method = normalised(model, schedule=schedules.never())
    method.backward(lambda: loss_on(model, X, Y), advance=False)
    method.backward(lambda: loss_on(model, X, Y))
    assert method.t == 1


def refusals_of_a_rank(rank: int) -> list[str]:
    """The error of the constructor with c = 2, and with c = 1 and p = 0, where the norm has no effect."""
    answers = []
    for c, schedule in ((2.0, schedules.always()), (1.0, schedules.always()), (2.0, schedules.never())):
        try:
            normalised(DistributedDataParallel(perceptron()), c, schedule)
            answers.append("accepted")
        except ValueError as error:
            answers.append(str(error))
    return answers


def test_several_ranks_are_refused_by_the_constructor(tmp_path):
    for answers in results_of_ranks(refusals_of_a_rank, 2, tmp_path):
        assert "normalise_clean with gamma_ratio 2 works only on one rank" in answers[0]
        assert answers[1:] == ["accepted", "accepted"]
