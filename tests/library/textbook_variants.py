"""Plain versions of the variants of SAM, written from their formulas, on flat vectors.

Each class here computes, for one sharp step, the sharp gradient of every device from its clean gradient (for SAM: g_s
from g), and keeps the state of its variant. A device is a rank, or a micro-batch with passes of its own; it is given as
a function from rows of its batch to the loss of each row, with the model's present weights. Random numbers are
arguments, so that nothing here depends on how the library draws them.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from textbook import batch, clean_gradient
from torch import Tensor, nn
from torch.nn import functional as F

Device = Callable[..., Tensor]
ALL = slice(None)


def network() -> nn.Module:
    """A smooth network with BatchNorm, in double precision."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)
    ).double()


def device_of(model: nn.Module, number: int) -> Device:
    """A device: the losses of the model on rows of a batch of 8, which is a function of the number."""
    x, y = batch(number)
    x = x.to(next(model.parameters()).dtype)
    return lambda rows=ALL: F.cross_entropy(model(x[rows]), y[rows], reduction="none")


def vector(model: nn.Module) -> Tensor:
    """θ, the trainable weights."""
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def shifted(model: nn.Module, by: Tensor) -> None:
    """θ <- θ + ε."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(by[: p.numel()].view_as(p))
                by = by[p.numel() :]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Afterwards weights, buffers and modes are as before."""
    state, training = copy.deepcopy(model.state_dict()), model.training
    try:
        yield
    finally:
        model.load_state_dict(state)
        model.train(training)


def gradient_at(model: nn.Module, device: Device, epsilon: Tensor, rows: Any = ALL) -> Tensor:
    """∇L(θ + ε) over the given rows."""
    with untouched(model):
        shifted(model, epsilon)
        return clean_gradient(model, lambda: device(rows).mean())


def largest(score: Tensor, count: int) -> Tensor:
    """A mask of the ``count`` largest scores, by sorting."""
    mask = torch.zeros_like(score, dtype=torch.bool)
    mask[score.argsort(descending=True)[:count]] = True
    return mask


class Sam:
    """ε = ρ g/‖g‖."""

    def epsilon(self, theta: Tensor, g: Tensor, rho: float) -> Tensor:
        return rho * g / g.norm()

    def sharp(self, model: nn.Module, devices: list[Device], clean: list[Tensor], t: int, rho: float) -> list[Tensor]:
        return [
            gradient_at(model, device, self.epsilon(vector(model), g, rho))
            for device, g in zip(devices, clean, strict=True)
        ]

    def state(self) -> dict:
        return {}


class Asam(Sam):
    """ε = ρ T² g / ‖T g‖, T = |θ| + η."""

    def __init__(self, eta: float) -> None:
        self.eta = eta

    def epsilon(self, theta: Tensor, g: Tensor, rho: float) -> Tensor:
        size = theta.abs() + self.eta
        return rho * size**2 * g / (size * g).norm()


class Gsam(Sam):
    """g_s - α g_⊥, g_⊥ = g - ⟨g, ĝ_s⟩ ĝ_s."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def sharp(self, model: nn.Module, devices: list[Device], clean: list[Tensor], t: int, rho: float) -> list[Tensor]:
        result = []
        for g, g_s in zip(clean, super().sharp(model, devices, clean, t, rho), strict=True):
            unit = g_s / g_s.norm()
            result.append(g_s - self.alpha * (g - g @ unit * unit))
        return result


class LookSam(Sam):
    """Every k-th sharp step: g_s, and g_v = g_s - ⟨g_s, ĝ⟩ ĝ is stored. Those between: g + α ‖g‖/‖g_v‖ g_v."""

    def __init__(self, k: int, alpha: float) -> None:
        self.k, self.alpha, self.count, self.kept = k, alpha, 0, []

    def sharp(self, model: nn.Module, devices: list[Device], clean: list[Tensor], t: int, rho: float) -> list[Tensor]:
        self.count += 1
        if (self.count - 1) % self.k:
            return [g + self.alpha * g.norm() / v.norm() * v for g, v in zip(clean, self.kept, strict=True)]
        sharp = super().sharp(model, devices, clean, t, rho)
        units = [g / g.norm() for g in clean]
        self.kept = [g_s - g_s @ unit * unit for g_s, unit in zip(sharp, units, strict=True)]
        return sharp

    def state(self) -> dict:
        return {"count": self.count, "kept": self.kept}


class FriendlySam(Sam):
    """ε = ρ d/‖d‖ with d = g - σ m, then m <- λ m + (1 - λ) g, g being the mean over the devices. The first m is g.

    In the first sharp step, which has no m yet, d is g. A step uses m as it was before, as the authors' code does; at
    σ = 1 the new m gives the same direction, because g - (λ m + (1 - λ) g) = λ (g - m). The devices may have shares.
    """

    def __init__(self, sigma: float, decay: float, shares: list[float] | None = None) -> None:
        self.sigma, self.decay, self.shares, self.m = sigma, decay, shares, None

    def epsilon(self, theta: Tensor, g: Tensor, rho: float) -> Tensor:
        d = g if self.m is None else g - self.sigma * self.m
        return rho * d / d.norm()

    def sharp(self, model: nn.Module, devices: list[Device], clean: list[Tensor], t: int, rho: float) -> list[Tensor]:
        shares = self.shares or [1 / len(clean)] * len(clean)
        result = super().sharp(model, devices, clean, t, rho)
        g = torch.stack([share * own for share, own in zip(shares, clean, strict=True)]).sum(0)
        self.m = g if self.m is None else self.decay * self.m + (1 - self.decay) * g
        return result

    def state(self) -> dict:
        return {"m": self.m}


class Esam(Sam):
    """ε = (ρ/β) g_S/‖g_S‖; g_s is over the ⌊γB⌋ samples with the largest ℓ(θ + ε) - ℓ(θ)."""

    def __init__(self, beta: float, gamma: float, draws: Callable[[int], list[float]]) -> None:
        self.beta, self.gamma, self.draws = beta, gamma, draws

    def sharp(self, model: nn.Module, devices: list[Device], clean: list[Tensor], t: int, rho: float) -> list[Tensor]:
        sizes = [p.numel() for p in model.parameters() if p.requires_grad]
        draws = self.draws(t)
        inside = torch.cat([torch.full((n,), u < self.beta) for n, u in zip(sizes, draws, strict=True)])
        result = []
        for device, g in zip(devices, clean, strict=True):
            g_set = torch.where(inside, g, 0.0)
            epsilon = rho / self.beta * g_set / g_set.norm() if inside.any() else torch.zeros_like(g)
            with untouched(model), torch.no_grad():
                before = device()
                shifted(model, epsilon)
                rise = device() - before
            rows = rise.argsort(descending=True)[: math.floor(self.gamma * len(rise))]
            result.append(gradient_at(model, device, epsilon, rows.sort().values))
        return result


class Ssam(Sam):
    """ε = ρ m ⊙ g/‖g‖ with the norm of the whole g; the mask is the same on all devices."""

    def __init__(self, sparsity: float, update_every: int) -> None:
        self.sparsity, self.update_every = sparsity, update_every
        self.mask, self.due = None, 0

    def epsilon(self, theta: Tensor, g: Tensor, rho: float) -> Tensor:
        return rho * torch.where(self.mask, g, 0.0) / g.norm()

    def is_due(self, t: int) -> bool:
        """Whether this is the first sharp step of a period of update_every steps."""
        due = t // self.update_every >= self.due
        self.due = t // self.update_every + 1 if due else self.due
        return due

    def ones(self, model: nn.Module) -> int:
        total = len(vector(model))
        return total - math.ceil(self.sparsity * total)

    def state(self) -> dict:
        return {"mask": self.mask}


class SsamF(Ssam):
    """The mask is 1 at the largest Σ (∂ℓ/∂θ)², over the first n samples of every device, one at a time."""

    def __init__(self, sparsity: float, update_every: int, samples: int) -> None:
        super().__init__(sparsity, update_every)
        self.samples = samples

    def sharp(self, model: nn.Module, devices: list[Device], clean: list[Tensor], t: int, rho: float) -> list[Tensor]:
        if self.is_due(t):
            fisher = torch.zeros_like(clean[0])
            with untouched(model):
                model.eval()
                for device in devices:
                    for i in range(self.samples):
                        fisher += clean_gradient(model, lambda i=i, device=device: device([i]).sum()) ** 2
            self.mask = largest(fisher, self.ones(model))
        return super().sharp(model, devices, clean, t, rho)


class SsamD(Ssam):
    """After ε is made, the share d of the weights with m = 1 that has the smallest Σ |g| is exchanged for others."""

    def __init__(
        self, sparsity: float, update_every: int, drop: float, noise: Callable[[int], Tensor], total_steps: int
    ) -> None:
        super().__init__(sparsity, update_every)
        self.drop, self.noise, self.total_steps = drop, noise, total_steps

    def sharp(self, model: nn.Module, devices: list[Device], clean: list[Tensor], t: int, rho: float) -> list[Tensor]:
        ones, due, first = self.ones(model), self.is_due(t), self.mask is None
        if first:
            self.mask = largest(self.noise(t), ones)
        result = super().sharp(model, devices, clean, t, rho)
        if due and not first:
            share = self.drop / 2 * (1 + math.cos(math.pi * t / self.total_steps))
            dropped = min(math.floor(ones * share), len(self.mask) - ones)
            size = torch.stack(clean).abs().sum(0)
            stay = largest(torch.where(self.mask, size, -1.0), ones - dropped)
            self.mask = stay | largest(torch.where(self.mask, -1.0, self.noise(t)), dropped)
        return result


def step_gradient(
    oracle: Sam,
    model: nn.Module,
    devices: list[Device],
    sharp: bool,
    t: int,
    rho: float,
    c: float,
    shares: list[float] | None = None,
    normalise_clean: bool = False,
) -> Tensor:
    """The mean over the devices of g, or in a sharp step of (1 - c) g + c times the sharp gradient.

    A device counts by its share of the step; by default all are equal. Each may divide its own g in that sum by ‖g‖.
    """
    share = torch.tensor(shares or [1 / len(devices)] * len(devices), dtype=torch.float64)[:, None]
    clean = [clean_gradient(model, lambda device=device: device().mean()) for device in devices]
    if not sharp:
        return (share * torch.stack(clean)).sum(0)
    mixed = [
        (1 - c) * (g / g.norm() if normalise_clean else g) + c * s
        for g, s in zip(clean, oracle.sharp(model, devices, clean, t, rho), strict=True)
    ]
    return (share * torch.stack(mixed)).sum(0)


def set_gradient(model: nn.Module, gradient: Tensor) -> None:
    """Write a vector into ``.grad``."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p, own in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        p.grad = own.view_as(p).clone()


class Chosen(nn.Module):
    """Weights whose per-sample gradients can be chosen: a loss is the inner product of weights and gradient."""

    def __init__(self, *sizes: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList(torch.randn(n, generator=generator, dtype=torch.float64) for n in sizes)

    def losses(self, gradients: Tensor) -> Tensor:
        """The losses, [n], of samples that have these gradients, [n, number of weights]."""
        return gradients @ torch.cat(list(self.weights))
