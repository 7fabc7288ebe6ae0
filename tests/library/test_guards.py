"""What a step leaves alone: buffers, random numbers, modes, and gradients that were there before.

Afterwards each is as after one plain step.
"""

import pytest
import torch
from textbook import Network, assert_bitwise, batch, left, loss_on, perceptron
from torch import Tensor, nn
from torch.nn import functional as F

import rst
from rst import schedules
from rst.guards import evaluation_mode
from rst.ranks import world_size

RHO = 0.1
X, Y = batch(0)


def sharp(model: nn.Module, **arguments) -> rst.RST:
    return rst.RST(model, RHO, schedules.always(), **arguments)


# Buffers --------------------------------------------------------------------------------------------------------------


class Decaying(nn.Module):
    """Rebinds a buffer in every forward pass, and counts the passes in a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("absent", None)
        self.register_buffer("unsaved", torch.zeros(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.scale = self.scale * 0.9
        self.calls += 1
        self.unsaved.add_(x.detach().mean(0))
        return x * self.scale


LAYERS_WITH_BUFFERS = {
    "BatchNorm": lambda: nn.BatchNorm1d(4),
    "BatchNorm, cumulative": lambda: nn.BatchNorm1d(4, momentum=None),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
    "InstanceNorm": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    ),
    "spectral norm, hook": lambda: torch.nn.utils.spectral_norm(nn.Linear(4, 4)),
    "spectral norm, parametrization": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "a module of the user's": Decaying,
}


@pytest.mark.parametrize("name", LAYERS_WITH_BUFFERS)
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*")
def test_after_sharp_steps_buffers_are_as_after_plain_steps(name):
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 4), LAYERS_WITH_BUFFERS[name](), nn.Linear(4, 4))

    plain, model = network(), network()
    fresh = {key: buffer.clone() for key, buffer in model.named_buffers()}
    method = sharp(model)
    for _ in range(3):
        loss_on(plain, X, Y).backward()
        method.backward(lambda: loss_on(model, X, Y))
    assert_bitwise(dict(model.named_buffers()), dict(plain.named_buffers()))
    assert any(not torch.equal(buffer, fresh[key]) for key, buffer in model.named_buffers())


def test_the_perturbed_pass_starts_from_the_buffers_that_the_clean_pass_left():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), Decaying())
    seen = []
    for weight in sharp(model).passes():
        seen.append(model[2].calls.item())
        (weight * loss_on(model, X, Y)).backward()
    assert seen == [0, 1]


# Random numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [schedules.never(), schedules.always()], ids=str)
def test_a_step_draws_the_random_numbers_of_one_plain_step(schedule):
    model = Network()
    torch.manual_seed(1)
    loss_on(model, X, Y)
    expected = torch.get_rng_state()
    torch.manual_seed(1)
    rst.RST(model, RHO, schedule).backward(lambda: loss_on(model, X, Y))
    assert_bitwise(torch.get_rng_state(), expected)


def test_where_the_perturbed_pass_draws_more_numbers_the_generator_stays_where_the_clean_pass_left_it():
    """As where the weights decide how many are drawn."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    torch.manual_seed(1)
    torch.rand(1)
    expected = torch.get_rng_state()
    torch.manual_seed(1)
    for number, weight in enumerate(sharp(model).passes()):
        torch.rand(1 + number)
        (weight * loss_on(model, X, Y)).backward()
    assert_bitwise(torch.get_rng_state(), expected)


def test_making_the_method_and_reading_its_gate_draw_no_random_number():
    model, before = Network(), torch.get_rng_state()
    method = rst.RST(model, RHO, schedules.constant(0.5), total_steps=5000)
    assert method.gate.any()
    assert_bitwise(torch.get_rng_state(), before)


def test_both_passes_draw_the_same_dropout_masks_and_the_next_step_draws_others():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    method, masks = sharp(model), []
    for _ in range(2):
        for weight in method.passes():
            masks.append(F.dropout(torch.ones(100)))
            (weight * loss_on(model, X, Y)).backward()
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [schedules.never(), schedules.always()], ids=str)
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_a_gradient_from_before_is_added_to_and_takes_no_part_in_the_perturbation(schedule, c):
    model = perceptron()
    method = rst.RST(model, RHO, schedule, gamma_ratio=c)
    method.backward(lambda: loss_on(model, X, Y))
    expected = left(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    method.backward(lambda: loss_on(model, X, Y))
    torch.testing.assert_close(left(model), expected + 3.0, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_gradient_from_before_is_kept_where_the_clean_pass_creates_a_graph():
    """``create_graph=True`` makes autograd put a new tensor into `.grad` instead of adding to the one that is there."""
    model = perceptron()
    method = sharp(model, gamma_ratio=2.0)
    method.backward(lambda: loss_on(model, X, Y))
    expected = left(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    for weight in method.passes():
        (weight * loss_on(model, X, Y)).backward(create_graph=weight == 1.0)
    torch.testing.assert_close(left(model), expected + 3.0, rtol=1e-9, atol=1e-12)


def test_zeroing_gradients_in_place_gives_the_same_training_as_setting_them_to_none():
    def train(set_to_none: bool) -> Tensor:
        model = perceptron()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        method = sharp(model, gamma_ratio=2.0)
        for _ in range(4):
            method.backward(lambda: loss_on(model, X, Y))
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    assert_bitwise(train(set_to_none=False), train(set_to_none=True))


# Modes and ranks ------------------------------------------------------------------------------------------------------


def test_evaluation_mode_gives_every_module_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    model[1].eval()
    with evaluation_mode(model):
        assert [module.training for module in model.modules()] == [False, False, False]
    assert [module.training for module in model.modules()] == [True, True, False]


def test_without_a_process_group_there_is_one_rank():
    assert world_size() == 1
