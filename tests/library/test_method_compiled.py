"""`torch.compile`d models: after both passes were seen once, no step compiles anything again."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch._inductor.config
from textbook import Counting, batch, left
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from variant_cases import VARIANTS, close

import rst
from rst import schedules

BATCHES = [batch(t) for t in range(8)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 4)
    )


def train(
    model: nn.Module, method: rst.RST, micro_batches: int = 1, scaler: torch.amp.GradScaler | None = None
) -> Iterator[Tensor]:
    """The gradient of each of 8 steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(3)
    for x, y in BATCHES:
        for i in range(micro_batches):
            own = slice(i * 8 // micro_batches, (i + 1) * 8 // micro_batches)

            def losses(rows=slice(None), own=own, x=x, y=y) -> Tensor:
                return F.cross_entropy(method.model(x[own][rows]), y[own][rows], reduction="none")

            method.backward(losses, i == micro_batches - 1, 1 / micro_batches, scaler)
        yield left(model)
        optimizer.step()
        optimizer.zero_grad()


def compilations() -> int:
    return counters["stats"]["unique_graphs"]


def assert_compiles_once(make: Callable[[nn.Module], rst.RST], backend: str, micro_batches: int = 1) -> None:
    """The gradients are those without the compiler, and the first pass compiles the only graph."""
    plain = network()
    expected = list(train(plain, make(plain), micro_batches))
    model = network()
    method = make(torch.compile(model, backend=backend, dynamic=False))
    compiled, counts = train(model, method, micro_batches), []
    for own in expected:
        with torch._dynamo.config.patch(error_on_recompile=True):
            close(next(compiled), own, 1e-4)
        counts.append(compilations())
    assert counts == [1] * len(BATCHES)


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"gamma_ratio": 2.0}, {"normalise_clean": True, "gamma_ratio": 2.0}, {"only": lambda name, p: p.dim() > 1}],
    ids=["SAM", "GNR", "normalised", "only"],
)
def test_sharp_steps_are_compiled_once(arguments, micro_batches):
    assert_compiles_once(lambda m: rst.RST(m, 0.1, schedules.always(), **arguments), "aot_eager", micro_batches)


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("schedule", [schedules.constant(0.5), schedules.ae_sam(), schedules.tail(0.5)], ids=str)
def test_a_plain_step_after_a_sharp_one_and_a_sharp_step_after_a_plain_one_compile_nothing(schedule, micro_batches):
    """Also where the first sharp step comes late."""
    assert_compiles_once(
        lambda m: rst.RST(m, 0.1, schedule, gamma_ratio=2.0, total_steps=8, seed=1), "aot_eager", micro_batches
    )


@pytest.mark.parametrize("name", ["asam", "gsam", "looksam", "ssam_d"])
def test_the_variants_compile_nothing_more(name):
    assert_compiles_once(
        lambda m: rst.RST(m, 0.1, schedules.constant(0.5), total_steps=8, seed=1, variant=VARIANTS[name]()), "aot_eager"
    )


def test_a_loss_scale_compiles_nothing_more():
    model = network()
    method = rst.RST(torch.compile(model, backend="aot_eager", dynamic=False), 0.1, schedules.constant(0.5), seed=1)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in train(model, method, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**8)):
            pass
    assert compilations() == 1


def test_a_buffer_that_the_forward_pass_makes_anew_is_compiled_without_a_break():
    model = Counting()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    method = rst.RST(compiled, 0.1, schedules.always())
    for _ in range(2):
        method.backward(lambda: compiled(torch.ones(8, 4)).mean())
    assert model.steps == 2


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_the_default_backend_compiles_once_too(micro_batches):
    with torch._inductor.config.patch(fallback_random=True):  # the dropout masks of eager execution
        assert_compiles_once(
            lambda m: rst.RST(m, 0.1, schedules.constant(0.5), gamma_ratio=2.0, seed=1), "inductor", micro_batches
        )
