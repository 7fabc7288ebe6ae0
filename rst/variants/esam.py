"""ESAM: some of the weights perturbed, some of the samples used (Du et al., 2022)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rst.checks import in_unit_interval
from rst.streams import stream
from rst.variants.variant import Closure, Variant
from rst.vectors import EPSILON, norm


class ESAM(Variant):
    """ε = (ρ/beta) g_S/‖g_S‖ on a random set S of tensors, and g_s over the samples whose loss rises most under it.

    Each tensor is in S with probability ``beta``, drawn anew each step. Of B samples the ``gamma`` B with the largest
    ℓ(θ + ε) - ℓ(θ) are used. The clean gradient is whole also off S, so that (1 - c) g + c g_s means what it says;
    masked tensors therefore save no work. Forward and backward are counted as one and two thirds of a pass.
    """

    by_sample = True

    def __init__(self, beta: float = 0.5, gamma: float = 0.5) -> None:
        self.beta, self.gamma = in_unit_interval("beta", beta), in_unit_interval("gamma", gamma)
        if self.beta == 0 or self.gamma == 0:
            raise ValueError(f"beta and gamma must be above 0, got {beta} and {gamma}.")
        self.extra_passes = self.gamma + (1 / 3 if self.gamma < 1 else 0)

    def begin(self, parameters: Sequence[Tensor], t: int, total_steps: int | None, seed: int) -> None:
        """Draw S: a function of (seed, t), so equal on all ranks and micro-batches."""
        draws = torch.rand(len(parameters), generator=stream("esam", seed, t)).tolist()
        self.kept = {p: float(draw < self.beta) for p, draw in zip(parameters, draws, strict=True)}

    def perturb(self, out: list[Tensor], weights: list[Tensor], gradients: list[Tensor], rho: float) -> None:
        """Write (ρ/β) g_S/‖g_S‖."""
        torch._foreach_copy_(out, gradients)
        torch._foreach_mul_(out, [self.kept[p] for p in out])
        torch._foreach_mul_(out, rho / self.beta / (norm(out) + EPSILON))

    def select(self, closure: Closure, clean_losses: Tensor) -> tuple[Any, float, float]:
        """The rows whose loss rises most, by one forward pass over all of them."""
        if self.gamma == 1:
            return slice(None), 1.0, 1.0
        with torch.no_grad():
            rise = closure(slice(None)) - clean_losses
        count = max(1, int(self.gamma * len(rise)))
        share = count / len(rise)
        return rise.topk(count).indices, 1 + share, share
