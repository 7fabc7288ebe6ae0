"""Autocast round the loop, and a loss scaler in it."""

from itertools import pairwise

import pytest
import torch
from textbook import assert_bitwise, batch
from torch import nn
from torch.nn import functional as F

import rst
from rst import schedules

X, Y = batch(0)
BF16 = torch.bfloat16


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 4))


def in_bf16(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The network with the weights that it has now, cast by hand: nothing here can be served from a cache."""
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        hidden = F.linear(x.flatten(1).to(BF16), model[1].weight.to(BF16), model[1].bias.to(BF16))
        return F.linear(hidden.tanh(), model[3].weight.to(BF16), model[3].bias.to(BF16))


@pytest.mark.parametrize("regions", ["one", "one a step"])
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_every_forward_inside_autocast_sees_the_weights_of_its_moment(regions, p):
    """The clean pass those of the last optimizer step, the perturbed pass the perturbed ones, and then the restored."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    method = rst.RST(model, 1.0, schedules.constant(p), total_steps=8)

    def step() -> None:
        outputs = []
        for weight in method.passes():
            outputs.append(model(X))
            assert_bitwise(outputs[-1].detach(), in_bf16(model, X))
            (weight * F.cross_entropy(outputs[-1], Y)).backward()
        if len(outputs) == 2:
            assert not torch.equal(outputs[0], outputs[1])
            assert_bitwise(model(X).detach(), outputs[0].detach())
        optimizer.step()
        optimizer.zero_grad()

    if regions == "one":
        with torch.autocast("cpu", BF16):
            for _ in range(8):
                step()
    else:
        for _ in range(8):
            with torch.autocast("cpu", BF16):
                step()
    assert method.gate.any()
    assert method.gate.all() == (p == 1)


def train(scaler: torch.amp.GradScaler, c: float, overflow: tuple[int, int] | None = None, clip: bool = False):
    """The weights before each of four steps and after the last; ``overflow`` is (step, pass) of an infinite loss."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = rst.RST(model, 0.1, schedules.always(), gamma_ratio=c)
    history = [nn.utils.parameters_to_vector(model.parameters()).detach().clone()]
    for t in range(4):
        for number, weight in enumerate(method.passes()):
            loss = F.cross_entropy(model(X), Y)
            if (t, number) == overflow:
                loss = loss * torch.inf
            scaler.scale(weight * loss).backward()
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        history.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
    assert method.t == 4
    return history


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_a_loss_scaler_changes_nothing_but_rounding(c, clip):
    scaled = train(torch.amp.GradScaler("cpu", init_scale=2.0**12), c, clip=clip)
    unscaled = train(torch.amp.GradScaler("cpu", enabled=False), c, clip=clip)
    torch.testing.assert_close(scaled, unscaled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("number", [0, 1], ids=["clean", "perturbed"])
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_an_overflow_in_either_pass_skips_the_step_and_the_training_goes_on(c, number):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    history = train(scaler, c, overflow=(1, number))
    moved = [not torch.equal(before, after) for before, after in pairwise(history)]
    assert moved == [True, False, True, True]
    assert history[-1].isfinite().all()
    assert scaler.get_scale() == 2.0**11
