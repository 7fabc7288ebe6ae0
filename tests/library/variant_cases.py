"""The variants with the options that their tests use, each with its plain version, and helpers of these tests."""

from collections.abc import Callable

import pytest
import torch
from textbook import left
from textbook_variants import (
    ALL,
    Asam,
    Chosen,
    Esam,
    FriendlySam,
    Gsam,
    LookSam,
    Sam,
    SsamD,
    SsamF,
    network,
    vector,
)
from torch import Tensor

import rst
from rst import schedules
from rst.streams import stream
from rst.variants import ASAM, ESAM, GSAM, NAMES, SAM, SSAMD, SSAMF, FriendlySAM, LookSAM, Variant

STEPS, SEED, RHO = 20, 1, 0.1

ALWAYS, NEVER = schedules.always(), schedules.never()


def draws(t: int) -> list[float]:
    """The random number of each parameter tensor of `network` at step t, from which ESAM draws its set."""
    return torch.rand(8, generator=stream("esam", SEED, t)).tolist()


def noise(t: int) -> Tensor:
    """The random number of each weight of `network` at step t, from which SSAM-D draws its masks."""
    generator = stream("ssam", SEED, t)
    return torch.cat([torch.rand(p.shape, generator=generator).flatten() for p in network().parameters()])


VARIANTS: dict[str, Callable[[], Variant]] = {
    "sam": SAM,
    "asam": lambda: ASAM(eta=0.01),
    "gsam": lambda: GSAM(alpha=0.4),
    "looksam": lambda: LookSAM(k=3, alpha=0.7),
    "friendly": lambda: FriendlySAM(sigma=0.8, decay=0.7),
    "esam": lambda: ESAM(beta=0.6, gamma=0.5),
    "ssam_f": lambda: SSAMF(sparsity=0.3, update_every=3, samples=5),
    "ssam_d": lambda: SSAMD(sparsity=0.3, update_every=3, drop=0.5),
}

ORACLES: dict[str, Callable[[], Sam]] = {
    "sam": Sam,
    "asam": lambda: Asam(eta=0.01),
    "gsam": lambda: Gsam(alpha=0.4),
    "looksam": lambda: LookSam(k=3, alpha=0.7),
    "friendly": lambda: FriendlySam(0.8, 0.7),
    "esam": lambda: Esam(0.6, 0.5, draws),
    "ssam_f": lambda: SsamF(0.3, 3, samples=5),
    "ssam_d": lambda: SsamD(0.3, 3, 0.5, noise, STEPS),
}

variants = pytest.mark.parametrize("name", VARIANTS)

without_per_sample_loss = pytest.mark.parametrize(
    "name", [name for name in VARIANTS if not NAMES[name].needs_per_sample_loss]
)

combining = pytest.mark.parametrize("name", ["gsam", "looksam"])


def close(actual: object, expected: object, tolerance: float = 1e-10) -> None:
    """Assert that nested dicts and lists of tensors are equal within a relative and absolute tolerance."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


SCHEMES = {"alone": (ALWAYS, 1.0), "RST": (schedules.constant(0.5), 1.0), "G-RST": (schedules.constant(0.5), "auto")}


def random(seed: int, *shape: int) -> Tensor:
    """Normal random numbers of this shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(method: rst.RST, model: Chosen, *gradients: Tensor) -> Tensor:
    """The gradient that a step leaves, if its passes have these gradients, [number of weights] each."""
    model.zero_grad()
    for weight, g in zip(method.passes(), gradients, strict=True):
        (weight * model.losses(g[None]).mean()).backward()
    return left(model)


def epsilon_of(method: rst.RST, model: Chosen, gradients: Tensor, advance: bool = True) -> Tensor:
    """ε of a sharp step over samples that have these gradients, [n, number of weights]."""
    seen = []

    def closure(rows=ALL) -> Tensor:
        seen.append(vector(model))
        return model.losses(gradients[rows])

    model.zero_grad()
    method.backward(closure, advance)
    return seen[-1] - seen[0]


def mask_of(method: rst.RST) -> Tensor:
    """The mask of an SSAM variant, as one vector."""
    return torch.cat([m.flatten() for m in method.variant.state_dict()["mask"].values()])
