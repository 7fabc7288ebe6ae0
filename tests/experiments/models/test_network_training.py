"""Every network trains: finite gradients, falling losses, and the same results in other layouts and when compiled."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NAMES, batch, build, slim_with_random_head
from torch import Tensor, nn


def loss_and_gradients(call: Any, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The loss of ``call(x)`` and its gradients with respect to all parameters, always with the same dropout masks."""
    torch.manual_seed(2)
    loss = F.cross_entropy(call(x), y)
    return loss.detach().double(), list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_a_slim_network_gets_a_finite_gradient(name: str) -> None:
    model, (x, y) = slim_with_random_head(name), batch(name)
    assert model(x).shape == (4, 10)
    _, gradients = loss_and_gradients(model, model, x, y)
    for (parameter, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert gradient.isfinite().all(), parameter
        assert gradient.any(), parameter


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_a_slim_network_falls_when_it_is_trained_on_one_batch(name: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = build(name, slim=True), batch(name, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_in_channels_last_the_logits_are_the_same_and_every_convolution_gets_that_layout(name: str) -> None:
    model, (x, _) = slim_with_random_head(name).eval(), batch(name)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    layouts = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-3, atol=1e-4)
    assert layouts
    assert all(layouts)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_gives_nearly_the_same_loss_and_finite_gradients(name: str) -> None:
    model, (x, y) = slim_with_random_head(name), batch(name)
    expected, _ = loss_and_gradients(model, model, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        loss, gradients = loss_and_gradients(model, model, x, y)
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients)


def check_compiled(name: str, backend: str) -> None:
    """Compare a compiled slim network with the plain one, in double precision, where rounding does not flip a ReLU."""
    torch.compiler.reset()
    model, (x, y) = slim_with_random_head(name).double(), batch(name)
    x = x.double()
    for dropout in (module for module in model.modules() if isinstance(module, nn.Dropout)):
        dropout.p = 0.0  # A compiled network may draw other dropout masks.
    loss, gradients = loss_and_gradients(torch.compile(model, backend=backend, fullgraph=True), model, x, y)
    expected_loss, expected_gradients = loss_and_gradients(model, model, x, y)
    torch.testing.assert_close(loss, expected_loss)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["resnet18", "wrn28_10", "pyramidnet164", "vgg16_bn", "vit_ti", "resnet50"])
def test_each_architecture_is_traced_as_one_graph_with_the_same_loss_and_gradients(name: str) -> None:
    check_compiled(name, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_slim_network_has_the_same_loss_and_gradients(name: str) -> None:
    check_compiled(name, "inductor")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_full_size_network_makes_one_step(name: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = build(name), batch(name, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
