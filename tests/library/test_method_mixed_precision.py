"""Autocast around the loop over passes, and a loss scaler inside it."""

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
    """The network's output from its present weights, cast by hand, so that no cached cast can be used."""
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        hidden = F.linear(x.flatten(1).to(BF16), model[1].weight.to(BF16), model[1].bias.to(BF16))
        return F.linear(hidden.tanh(), model[3].weight.to(BF16), model[3].bias.to(BF16))


@pytest.mark.parametrize("regions", ["one for all steps", "one for each step"])
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_every_forward_pass_inside_autocast_uses_the_present_weights(regions, p):
    """The clean pass uses those after the optimizer's step, the perturbed pass θ + ε, and the next pass θ again."""
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

    if regions == "one for all steps":
        with torch.autocast("cpu", BF16):
            for _ in range(8):
                step()
    else:
        for _ in range(8):
            with torch.autocast("cpu", BF16):
                step()
    assert method.gate.any()
    assert method.gate.all() == (p == 1)


def train(
    scaler: torch.amp.GradScaler,
    c: float,
    overflow: tuple[int, int] | None = None,
    clip: bool = False,
    given: bool = False,
    micro_batches: int = 1,
) -> list[torch.Tensor]:
    """The weights before each of four steps and after the last; the loss is infinite at ``overflow``, (step, pass).

    The scaler is given to ``passes``, or the body calls it.
    """
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = rst.RST(model, 0.1, schedules.always(), gamma_ratio=c)
    history = [nn.utils.parameters_to_vector(model.parameters()).detach().clone()]
    for t in range(4):
        for i in range(micro_batches):
            passes = method.passes(i == micro_batches - 1, 1 / micro_batches, scaler if given else None)
            for number, weight in enumerate(passes):
                loss = F.cross_entropy(model(X), Y)
                if (t, number) == overflow:
                    loss = loss * torch.inf
                (weight * loss if given else scaler.scale(weight * loss)).backward()
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        history.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
    assert method.t == 4
    return history


scaled_by = pytest.mark.parametrize("given", [False, True], ids=["the body", "the method"])


@scaled_by
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_a_loss_scaler_changes_the_training_by_rounding_only(c, clip, given):
    scaled = train(torch.amp.GradScaler("cpu", init_scale=2.0**12), c, clip=clip, given=given)
    unscaled = train(torch.amp.GradScaler("cpu", enabled=False), c, clip=clip)
    torch.testing.assert_close(scaled, unscaled, rtol=1e-5, atol=1e-6)


@scaled_by
@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("number", [0, 1], ids=["clean", "perturbed"])
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_after_an_overflow_in_either_pass_the_scaler_skips_the_step_and_training_continues(
    c, number, micro_batches, given
):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    history = train(scaler, c, overflow=(1, number), given=given, micro_batches=micro_batches)
    moved = [not torch.equal(before, after) for before, after in pairwise(history)]
    assert moved == [True, False, True, True]
    assert history[-1].isfinite().all()
    assert scaler.get_scale() == 2.0**11
