"""Several perturbations a step on one device, against the same computation on as many devices, written out."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from textbook import assert_bitwise, clean_gradient, perturbed_gradient
from torch import Tensor, nn
from torch.nn import functional as F

import rst
from rst import schedules
from rst.experiments.config import gamma_ratio, schedule_of
from rst.training import checkpoint, train
from rst.training.data import RunData
from rst.training.loop import build_model
from rst.training.microbatches import micro_batches

RHO = 0.1
STEPS = 6
SCHEMES = {
    "SGD": (schedules.never(), 1.0),
    "SAM": (schedules.always(), 1.0),
    "GNR": (schedules.always(), 0.8),
    "RST[50%]": (schedules.constant(0.5), 1.0),
    "G-RST[50%]": (schedules.constant(0.5), 2.0),
}
schemes = pytest.mark.parametrize(("schedule", "c"), SCHEMES.values(), ids=SCHEMES)


class Network(nn.Module):
    """BatchNorm, and a buffer that no pass changes; in double precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4), nn.BatchNorm1d(4))
        self.register_buffer("constant", torch.tensor([0.1, 1 / 3, 12345.678, -1e-30]))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.constant


def batch(step: int, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 5, generator=generator, dtype=torch.float64), torch.randint(
        4, (size,), generator=generator
    )


def loss_on(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def one_device(loss: Callable[[nn.Module], Tensor], model: nn.Module, sharp: bool, c: float) -> tuple[Tensor, dict]:
    """The gradient of a device that has these images alone, and its buffers after its clean pass."""
    gradient = clean_gradient(model, lambda: loss(model))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    if sharp:
        gradient = (1 - c) * gradient + c * perturbed_gradient(model, lambda: loss(model), gradient, RHO)
    return gradient, buffers


def devices(model: nn.Module, losses: list[Callable[[nn.Module], Tensor]], sharp: bool, c: float) -> Tensor:
    """The mean gradient over replicas of the model, one a loss, which also leave the mean of their buffers in it."""
    gradients, buffers = zip(*[one_device(loss, copy.deepcopy(model), sharp, c) for loss in losses], strict=True)
    for name, buffer in model.named_buffers():
        buffer.copy_(torch.stack([b[name] for b in buffers]).to(torch.float64).mean(0))
    return torch.stack(gradients).mean(0)


def set_gradient(model: nn.Module, gradient: Tensor) -> None:
    for p, part in zip(model.parameters(), gradient.split([p.numel() for p in model.parameters()]), strict=True):
        p.grad = part.view_as(p)


def train_on_devices(schedule: schedules.Schedule, c: float, parts: int) -> nn.Module:
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gate = rst.RST(model, RHO, schedule, total_steps=STEPS).gate
    for step in range(STEPS):
        x, y = batch(step)
        losses = [lambda m, x=x, y=y: loss_on(m, x, y) for x, y in zip(x.chunk(parts), y.chunk(parts), strict=True)]
        set_gradient(model, devices(model, losses, bool(gate[step]), c))
        optimizer.step()
    return model


def train_in_micro_batches(schedule: schedules.Schedule, c: float, parts: int) -> nn.Module:
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = rst.RST(model, RHO, schedule, gamma_ratio=c, total_steps=STEPS)
    for step in range(STEPS):
        for x, y, last in micro_batches(model, *batch(step), 12 // parts):
            for weight in method.passes(advance=last):
                (weight / parts * loss_on(model, x, y)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert method.t == STEPS
    return model


@schemes
@pytest.mark.parametrize("parts", [1, 3, 4])
def test_weights_and_buffers_are_those_of_as_many_devices(schedule, c, parts):
    """Each part is perturbed by its own gradient; gradients, and buffers after the clean passes, are averaged."""
    actual, expected = (run(schedule, c, parts) for run in (train_in_micro_batches, train_on_devices))
    torch.testing.assert_close(actual.state_dict(), expected.state_dict(), rtol=1e-9, atol=1e-12)


def test_the_number_of_parts_matters():
    """So that the test above can fail: statistics and perturbations of 12, 4 and 3 images differ."""
    one, three, four = (train_in_micro_batches(schedules.always(), 1.0, parts) for parts in (1, 3, 4))
    for a, b in ((one, three), (three, four)):
        for name in ("body.0.weight", "body.1.running_var"):
            assert not torch.allclose(a.state_dict()[name], b.state_dict()[name], rtol=1e-4), name


@pytest.mark.parametrize("schedule", [schedules.never(), schedules.always()], ids=str)
@pytest.mark.parametrize("parts", [1, 2, 6])
def test_counters_advance_by_one_a_step(schedule, parts):
    model = train_in_micro_batches(schedule, 1.0, parts)
    assert model.state_dict()["body.1.num_batches_tracked"] == STEPS


def test_every_part_meets_the_buffers_that_the_step_began_with():
    model = Network()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for x, _, _ in micro_batches(model, *batch(0), 4):
        assert_bitwise(dict(model.named_buffers()), before)
        model(x)


@settings(deadline=None, max_examples=50)
@given(parts=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_buffer_that_no_part_changes_stays_as_it_is_to_the_bit(parts, seed):
    model = Network()
    table = torch.randn(50, generator=torch.Generator().manual_seed(seed))
    model.register_buffer("table", table.clone())
    for _ in micro_batches(model, *batch(0, size=parts), 1):
        pass
    assert_bitwise(model.table, table)


@given(parts=st.integers(1, 6), size=st.integers(1, 5))
def test_the_parts_are_the_batch_in_order_and_the_last_one_says_so(parts, size):
    images, labels = batch(0, parts * size)
    x, y, last = zip(*micro_batches(Network(), images, labels, size), strict=True)
    assert {len(part) for part in x} == {size}
    assert_bitwise([torch.cat(x), torch.cat(y)], [images, labels])
    assert list(last) == [False] * (parts - 1) + [True]


@schemes
def test_one_part_is_the_plain_step_to_the_bit(schedule, c):
    plain = Network()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    method = rst.RST(plain, RHO, schedule, gamma_ratio=c, total_steps=STEPS)
    for step in range(STEPS):
        method.backward(lambda step=step: loss_on(plain, *batch(step)))
        optimizer.step()
        optimizer.zero_grad()
    assert_bitwise(train_in_micro_batches(schedule, c, 1).state_dict(), plain.state_dict())


@pytest.mark.parametrize("failing_pass", [1, 2, 3, 4])
def test_an_error_in_any_pass_of_any_part_leaves_the_weights_and_the_step_as_they_were(failing_pass):
    model = Network()
    weights = copy.deepcopy(dict(model.named_parameters()))
    method = rst.RST(model, RHO, schedules.always())

    def step() -> None:
        done = 0
        for x, y, last in micro_batches(model, *batch(0), 6):
            for weight in method.passes(advance=last):
                done += 1
                if done == failing_pass:
                    raise ZeroDivisionError
                (weight * loss_on(model, x, y)).backward()

    with pytest.raises(ZeroDivisionError):
        step()
    assert_bitwise(dict(model.named_parameters()), weights)
    assert method.t == 0


# The whole loop of a run


def written_out(cfg: DictConfig) -> dict[str, Tensor]:
    """The weights and buffers after the run of the config, trained by hand on batch / m devices."""
    model, loader = build_model(cfg, torch.device("cpu")), RunData(cfg, torch.device("cpu")).loader()
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg.optimizer.lr, momentum=0.9, nesterov=True)
    steps = cfg.recipe.epochs * len(loader)
    lr = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    gate = rst.RST(model, RHO, schedule_of(cfg), total_steps=steps, seed=cfg.seed).gate

    def loss_of(x: Tensor, y: Tensor) -> Callable[[nn.Module], Tensor]:
        return lambda m: F.cross_entropy(m(x), y) + cfg.recipe.l2 / 2 * sum((p**2).sum() for p in m.parameters())

    batches = (b for epoch in range(cfg.recipe.epochs) for b in loader.epoch(epoch))
    for (images, labels), sharp in zip(batches, gate.tolist(), strict=True):
        size = cfg.recipe.perturbation_batch
        parts = zip(images.split(size), labels.split(size), strict=True)
        gradient = devices(model, [loss_of(x, y) for x, y in parts], sharp, gamma_ratio(cfg))
        set_gradient(model, gradient * min(1, cfg.recipe.clip_norm / gradient.norm()))
        optimizer.step()
        lr.step()
    return model.state_dict()


@pytest.mark.parametrize("scheme", ["sgd", "sam", "gnr", "rst", "grst"])
def test_a_run_is_the_written_out_training_on_batch_over_m_devices(config, scheme):
    """Decay inside the loss, mean over devices, then clipping, Nesterov momentum and the cosine."""
    recipe = {"rho": RHO, "l2": 0.05, "clip_norm": 1.5, "perturbation_batch": 8}
    cfg = config(f"scheme={scheme}", "optimizer.lr=0.02", *(f"recipe.{key}={value}" for key, value in recipe.items()))
    record = train(cfg, show_progress=False)
    torch.testing.assert_close(checkpoint.load(record.checkpoint)["model"], written_out(cfg), rtol=1e-3, atol=1e-5)
