"""The training step: several micro-batches on one device do what as many devices do.

What the devices do is computed here by plain operations, on a replica of the network for each of them.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import assert_bitwise, clean_gradient, perturbed_gradient
from torch import Tensor, nn
from torch.nn import functional as F

import rst
from rst import schedules
from rst.experiments.build import build_model
from rst.experiments.data.run_data import RunData
from rst.experiments.spec import RunSpec
from rst.experiments.training import checkpoint, train
from rst.experiments.training.step import micro_batches

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


def train_on_devices(schedule: schedules.Schedule, c: float, count: int) -> nn.Module:
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gate = rst.RST(model, RHO, schedule, total_steps=STEPS).gate
    for step in range(STEPS):
        x, y = batch(step)
        losses = [lambda m, x=x, y=y: loss_on(m, x, y) for x, y in zip(x.chunk(count), y.chunk(count), strict=True)]
        set_gradient(model, devices(model, losses, bool(gate[step]), c))
        optimizer.step()
    return model


def train_in_micro_batches(schedule: schedules.Schedule, c: float, count: int) -> nn.Module:
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = rst.RST(model, RHO, schedule, gamma_ratio=c, total_steps=STEPS)
    for step in range(STEPS):
        for x, y, last in micro_batches(model, *batch(step), 12 // count):
            for weight in method.passes(advance=last):
                (weight / count * loss_on(model, x, y)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert method.t == STEPS
    return model


@schemes
@pytest.mark.parametrize("count", [1, 3, 4])
def test_weights_and_buffers_are_those_of_as_many_devices(schedule, c, count):
    """Each is perturbed by its own gradient; gradients, and buffers after the clean passes, are averaged."""
    actual, expected = (run(schedule, c, count) for run in (train_in_micro_batches, train_on_devices))
    torch.testing.assert_close(actual.state_dict(), expected.state_dict(), rtol=1e-9, atol=1e-12)


def test_the_number_of_micro_batches_matters():
    """Statistics and perturbations of 12, 4 and 3 images differ, so that the test above can fail."""
    one, three, four = (train_in_micro_batches(schedules.always(), 1.0, count) for count in (1, 3, 4))
    for a, b in ((one, three), (three, four)):
        for name in ("body.0.weight", "body.1.running_var"):
            assert not torch.allclose(a.state_dict()[name], b.state_dict()[name], rtol=1e-4), name


@pytest.mark.parametrize("schedule", [schedules.never(), schedules.always()], ids=str)
@pytest.mark.parametrize("count", [1, 2, 6])
def test_counters_of_the_network_advance_by_one_a_step(schedule, count):
    model = train_in_micro_batches(schedule, 1.0, count)
    assert model.state_dict()["body.1.num_batches_tracked"] == STEPS


def test_every_micro_batch_meets_the_buffers_that_the_step_began_with():
    model = Network()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for x, _, _ in micro_batches(model, *batch(0), 4):
        assert_bitwise(dict(model.named_buffers()), before)
        model(x)


@settings(max_examples=50)
@given(count=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_buffer_that_no_micro_batch_changes_stays_as_it_is_to_the_bit(count, seed):
    model = Network()
    table = torch.randn(50, generator=torch.Generator().manual_seed(seed))
    model.register_buffer("table", table.clone())
    for _ in micro_batches(model, *batch(0, size=count), 1):
        pass
    assert_bitwise(model.table, table)


@given(count=st.integers(1, 6), size=st.integers(1, 5))
def test_the_micro_batches_are_the_batch_in_order_and_the_last_one_says_so(count, size):
    images, labels = batch(0, count * size)
    x, y, last = zip(*micro_batches(Network(), images, labels, size), strict=True)
    assert {len(part) for part in x} == {size}
    assert_bitwise([torch.cat(x), torch.cat(y)], [images, labels])
    assert list(last) == [False] * (count - 1) + [True]


@schemes
def test_one_micro_batch_is_the_plain_step_to_the_bit(schedule, c):
    plain = Network()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    method = rst.RST(plain, RHO, schedule, gamma_ratio=c, total_steps=STEPS)
    for step in range(STEPS):
        method.backward(lambda step=step: loss_on(plain, *batch(step)))
        optimizer.step()
        optimizer.zero_grad()
    assert_bitwise(train_in_micro_batches(schedule, c, 1).state_dict(), plain.state_dict())


@pytest.mark.parametrize("failing_pass", [1, 2, 3, 4])
def test_an_error_in_any_pass_of_any_micro_batch_leaves_the_weights_and_the_step_as_they_were(failing_pass):
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


# ----------------------------------------------------------------------------------------------------------- whole runs


def trained_by_hand(spec: RunSpec) -> dict[str, Tensor]:
    """The weights and buffers after a run, trained by plain operations on batch / m devices."""
    model, loader = build_model(spec, torch.device("cpu")), RunData(spec, torch.device("cpu")).loader()
    optimizer = torch.optim.SGD(model.parameters(), lr=spec.optimizer.lr, momentum=0.9, nesterov=True)
    lr = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, spec.total_steps)
    gate = rst.RST(model, RHO, spec.p, total_steps=spec.total_steps, seed=spec.seed).gate

    def loss_of(x: Tensor, y: Tensor) -> Callable[[nn.Module], Tensor]:
        return lambda m: F.cross_entropy(m(x), y) + spec.recipe.l2 / 2 * sum((p**2).sum() for p in m.parameters())

    batches = (b for epoch in range(spec.recipe.epochs) for b in loader.epoch(epoch))
    for (images, labels), sharp in zip(batches, gate.tolist(), strict=True):
        size = spec.perturbation_batch
        shares = zip(images.split(size), labels.split(size), strict=True)
        gradient = devices(model, [loss_of(x, y) for x, y in shares], sharp, spec.gamma_ratio)
        set_gradient(model, gradient * min(1, spec.recipe.clip_norm / gradient.norm()))
        optimizer.step()
        lr.step()
    return model.state_dict()


@pytest.mark.parametrize("scheme", ["sgd", "sam", "gnr", "rst", "grst"])
def test_a_run_is_the_plain_training_on_batch_over_m_devices(config, scheme):
    """Decay is inside the loss, then come the mean over devices, clipping, Nesterov momentum and the cosine."""
    recipe = {"rho": RHO, "l2": 0.05, "clip_norm": 1.5, "perturbation_batch": 8}
    spec = config(f"scheme={scheme}", "optimizer.lr=0.02", *(f"recipe.{key}={value}" for key, value in recipe.items()))
    record = train(spec, show_progress=False)
    torch.testing.assert_close(checkpoint.load(record.checkpoint)["model"], trained_by_hand(spec), rtol=1e-3, atol=1e-5)
