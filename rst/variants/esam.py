"""ESAM: perturbs a random part of the weights and uses part of the samples in that pass (Du et al., 2022)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rst.checks import in_unit_interval
from rst.perturbation import EPSILON, Vector
from rst.streams import stream
from rst.variants.variant import Closure, Variant


class ESAM(Variant):
    """ε = (ρ/beta) g_S/‖g_S‖ on a random set S of parameter tensors and 0 elsewhere; g_s is over part of the samples.

    Du et al., 2022 (arXiv 2110.03141); Section B.6. At every sharp step each tensor is in S with probability ``beta``.
    Of the B samples of a batch, the ⌊gamma B⌋ with the largest rise ℓ(θ + ε) - ℓ(θ) are used, and at least one. The
    clean gradient is computed for all tensors, since (1 - c) g + c g_s needs all of it; so a small ``beta`` saves no
    work. Cost: one more forward propagation over the batch, counted as a third of a pass, and a pass over the chosen
    samples. The former repeats the dropout masks of the clean pass, so that the latter draws masks of its own.

    Args:
        beta: in (0, 1], else ValueError.
        gamma: in (0, 1], else ValueError; with 1 all samples are used and the forward propagation that chooses them is
            left out.

    Example:
        >>> model, x, y = torch.nn.Linear(2, 3), torch.randn(8, 2), torch.randint(3, (8,))
        >>> criterion = torch.nn.CrossEntropyLoss(reduction="none")
        >>> method = rst.RST(model, rho=0.05, schedule=rst.schedules.always(), variant="esam")
        >>> loss = method.backward(lambda rows: criterion(model(x[rows]), y[rows]))
        >>> round(method.propagations, 2)  # 1, a third to choose samples, half with them
        1.83
    """

    needs_per_sample_loss = True

    def __init__(self, beta: float = 0.5, gamma: float = 0.5) -> None:
        self.beta, self.gamma = in_unit_interval("beta", beta), in_unit_interval("gamma", gamma)
        if self.beta == 0 or self.gamma == 0:
            raise ValueError(f"beta and gamma must be above 0, got {beta} and {gamma}.")
        self.extra_passes = self.gamma + (1 / 3 if self.gamma < 1 else 0)

    def begin(self, parameters: Mapping[str, Tensor], t: int, total_steps: int | None, seed: int) -> None:
        """Draw S, as a function of (seed, t), so that it is the same on all ranks and for all micro-batches."""
        draws = torch.rand(len(parameters), generator=stream("esam", seed, t), device="cpu").tolist()
        self.in_set = {name: float(draw < self.beta) for name, draw in zip(parameters, draws, strict=True)}

    def perturb(self, gradient: Vector, weights: Vector, scratch: Vector, rho: float, factor: float | Tensor) -> None:
        """Turn g into (ρ/β) g_S/‖g_S‖."""
        torch._foreach_mul_(gradient, [self.in_set[name] for name in gradient.names])
        torch._foreach_mul_(gradient, rho / self.beta / (gradient.norm() + EPSILON))

    def select(self, closure: Closure, clean_losses: Tensor) -> tuple[Any, float, float]:
        """The rows whose loss rises most, found by one forward propagation over all rows."""
        if self.gamma == 1:
            return slice(None), 1.0, 1.0
        with torch.no_grad():
            rise = closure(slice(None)) - clean_losses
        count = max(1, int(self.gamma * len(rise)))
        share = count / len(rise)
        return rise.topk(count).indices, 1 + share, share
