"""Plain versions of the method, written from the formulas of the paper, and small networks to run them on.

The tests compare the library with these. They are slow on purpose, and do not use the library.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda groups: torch.optim.Adam(groups, lr=1e-2),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1),
}


class Counting(nn.Linear):
    """Counts its forward passes in a buffer, which each of them makes anew."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps = self.steps + 1
        return super().forward(x)


class Network(nn.Module):
    """Convolution, BatchNorm and Dropout; one frozen parameter, and one layer that the forward pass never uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(12, 4)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.head(F.dropout(x.flatten(1), 0.3, self.training)) * self.frozen

    def groups(self) -> list[dict]:
        """Two parameter groups with different learning rates, for an optimizer."""
        body = [*self.conv.parameters(), *self.norm.parameters(), self.frozen, *self.unused.parameters()]
        return [{"params": body}, {"params": self.head.parameters(), "lr": 0.02}]


def batch(number: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Random images [size, 1, 6, 6] and labels [size], as a function of the number."""
    generator = torch.Generator().manual_seed(100 + number)
    return torch.randn(size, 1, 6, 6, generator=generator), torch.randint(4, (size,), generator=generator)


def perceptron() -> nn.Module:
    """A smooth network in double precision without buffers or random numbers, for comparisons up to rounding."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def loss_on(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, in the precision of the model."""
    return F.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Everything that training changes: weights, buffers, the optimizer's state, torch's random number generator."""
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}


def assert_bitwise(actual: object, expected: object) -> None:
    """Assert that two tensors or plain values, or two nested dicts and lists of them, are equal bit for bit."""
    if isinstance(expected, Mapping):
        assert isinstance(actual, Mapping)
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_bitwise(actual[key], value)
    elif isinstance(expected, list | tuple):
        assert isinstance(actual, list | tuple)
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_bitwise(one, other)
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    else:
        assert actual == expected


def gradient(parameters: list[Tensor]) -> Tensor:
    """``.grad`` of all parameters as one vector, with zeros where it is None."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def left(model: nn.Module) -> Tensor:
    """A copy of the gradient that a step has left in the trainable parameters, as one vector."""
    return gradient([p for p in model.parameters() if p.requires_grad]).clone()


def clean_gradient(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """g = ∇L(θ)."""
    model.zero_grad()
    loss().backward()
    return gradient(list(model.parameters()))


def perturbed_gradient(model: nn.Module, loss: Callable[[], Tensor], direction: Tensor, rho: float) -> Tensor:
    """g_s = ∇L(θ + ρ d/‖d‖)."""
    weights = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    nn.utils.vector_to_parameters(weights + rho * direction / direction.norm(), model.parameters())
    sharp = clean_gradient(model, loss)
    nn.utils.vector_to_parameters(weights, model.parameters())
    return sharp


def mixed_gradient(model: nn.Module, loss: Callable[[], Tensor], rho: float, c: float) -> Tensor:
    """(1 - c) g + c g_s (eq. 7)."""
    clean = clean_gradient(model, loss)
    return (1 - c) * clean + c * perturbed_gradient(model, loss, clean, rho)


def sam_backward(model: nn.Module, loss: Callable[[], Tensor], rho: float) -> None:
    """Leave SAM's gradient in ``.grad``, written as usual in PyTorch, one parameter after another.

    Both passes draw the same random numbers, and only the clean pass updates buffers.
    """
    before_clean = torch.get_rng_state()
    model.zero_grad()
    loss().backward()
    after_clean = torch.get_rng_state()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    parameters = [p for p in model.parameters() if p.grad is not None]
    weights = [p.detach().clone() for p in parameters]
    scale = rho / (torch.norm(torch.stack([p.grad.norm() for p in parameters])) + 1e-12)
    with torch.no_grad():
        for p in parameters:
            p.add_(p.grad * scale)
    model.zero_grad()
    torch.set_rng_state(before_clean)
    loss().backward()
    torch.set_rng_state(after_clean)
    with torch.no_grad():
        for p, weight in zip(parameters, weights, strict=True):
            p.copy_(weight)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def uniform_mean(p: Callable[[float], float], steps: int = 20_000) -> float:
    """∫ p(u) du over [0, 1], by the midpoint rule."""
    return math.fsum(p((i + 0.5) / steps) for i in range(steps)) / steps
