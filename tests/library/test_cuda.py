"""On a CUDA device: the textbook gradient, nothing that waits for the device, replayed dropout, loss scales, graphs."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rst
from rst import schedules

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

RHO = 0.1
WITHOUT_SAMPLES = ["sam", "asam", "gsam", "looksam"]


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(288, 10)]
    return nn.Sequential(*layers).cuda()


def batch(size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, 8, 8, generator=generator)
    return images.cuda(), torch.randint(10, (size,), generator=generator).cuda()


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()]).clone()


@contextmanager
def waiting_forbidden() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("c", [1.0, 2.0])
def test_the_gradient_is_the_textbook_one_and_weights_come_back_to_the_bit(c: float) -> None:
    model, (x, y) = network().double(), batch()
    x, weights = x.double(), [p.detach().clone() for p in model.parameters()]
    clean = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    norm = torch.cat([g.flatten() for g in clean]).norm()
    with torch.no_grad():
        for p, g in zip(model.parameters(), clean, strict=True):
            p.add_(RHO * g / norm)
    sharp = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    with torch.no_grad():
        for p, value in zip(model.parameters(), weights, strict=True):
            p.copy_(value)
    rst.RST(model, RHO, schedules.always(), gamma_ratio=c).backward(lambda: F.cross_entropy(model(x), y))
    expected = torch.cat([((1 - c) * g + c * s).flatten() for g, s in zip(clean, sharp, strict=True)])
    torch.testing.assert_close(gradient(model), expected, rtol=1e-9, atol=1e-11)
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("c", [1.0, 2.0])
@pytest.mark.parametrize("variant", WITHOUT_SAMPLES)
def test_no_step_waits_for_the_device(variant: str, c: float, scaled: bool) -> None:
    model, (x, y) = network(dropout=0.5), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = rst.RST(model, RHO, schedules.periodic(2), gamma_ratio=c, total_steps=20, variant=variant)
    scaler = torch.amp.GradScaler("cuda", enabled=scaled)

    def step() -> None:
        for last in (False, True):
            closure = lambda: F.cross_entropy(model(x), y)  # noqa: E731
            method.backward(closure, advance=last, share=0.5, scaler=scaler)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(6):
        step()
    with waiting_forbidden():
        for _ in range(6):
            step()
    assert method.sharp_steps == 6


def test_both_passes_have_the_same_dropout_masks() -> None:
    model, (x, y), seen = network(dropout=0.5), batch(), []
    model[3].register_forward_hook(lambda module, inputs, output: seen.append(output == 0))
    method = rst.RST(model, 0.0, schedules.always())
    method.backward(lambda: F.cross_entropy(model(x), y))
    assert torch.equal(*seen)
    method.backward(lambda: F.cross_entropy(model(x), y))
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_learns_in_low_precision_with_a_loss_scaler(dtype: torch.dtype) -> None:
    model, (x, y) = network(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = rst.RST(model, 0.05, schedules.constant(0.5), gamma_ratio="auto", total_steps=40)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16, init_scale=2.0**24)

    def closure() -> Tensor:
        with torch.autocast("cuda", dtype):
            return F.cross_entropy(model(x), y)

    losses = []
    for _ in range(40):
        losses.append(method.backward(closure, scaler=scaler).item())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert losses[-1] < 0.2 * losses[0]
    if dtype == torch.float16:
        assert scaler.get_scale() < 2.0**24  # The first scales overflowed, and their steps were left out.
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_sharp_step_can_be_captured_as_a_graph() -> None:
    """Nothing in it depends on a value that only the device knows, and its buffers stay where they are."""
    model, (x, y) = network(), batch()
    model.eval()
    method = rst.RST(model, RHO, schedules.always(), gamma_ratio=2.0)

    def step() -> None:
        for p in model.parameters():
            p.grad = None
        method.backward(lambda: F.cross_entropy(model(x), y))

    step()
    expected = gradient(model)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for p in model.parameters():
        p.grad.zero_()
    graph.replay()
    torch.testing.assert_close(gradient(model), expected)


@pytest.mark.slow
def test_a_compiled_network_is_not_compiled_again_after_both_passes() -> None:
    model, (x, y) = network(), batch()
    compiled = torch.compile(model)
    method = rst.RST(compiled, RHO, schedules.periodic(2), total_steps=20)
    for _ in range(4):
        method.backward(lambda: F.cross_entropy(compiled(x), y))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(4):
            method.backward(lambda: F.cross_entropy(compiled(x), y))
