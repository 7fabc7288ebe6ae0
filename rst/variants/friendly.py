"""FriendlySAM: perturbs along the part of the gradient that belongs to its own batch (Li et al., 2024)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rst.checks import in_unit_interval, non_negative
from rst.perturbation import EPSILON, Vector
from rst.ranks import sum_over_ranks
from rst.variants.variant import Variant


class FriendlySAM(Variant):
    """ε = ρ d/‖d‖ with d = g - sigma m, where m is a moving mean of the gradient: m <- decay m + (1 - decay) g.

    Li et al., 2024 (arXiv 2403.12350). The first m is the first g, whose own step has d = g. m changes on sharp steps
    only. All micro-batches and ranks of a step use the m of before the step, and the mean of their gradients, with
    their shares as weights, updates it; a step whose gradient is not finite leaves it alone. State: m, and on each rank
    what the next sharp step adds to it.

    Args:
        sigma: >= 0, else ValueError; with 0 this is SAM.
        decay: λ, in [0, 1], else ValueError.

    Example:
        >>> model, variant = torch.nn.Linear(2, 1), rst.variants.FriendlySAM(decay=0.6)
        >>> method = rst.RST(model, rho=0.1, schedule=rst.schedules.always(), variant=variant)
        >>> loss = method.backward(lambda: model(torch.ones(4, 2)).square().mean())
        >>> method.propagations
        2.0
    """

    def __init__(self, sigma: float = 1.0, decay: float = 0.9) -> None:
        self.sigma, self.decay = non_negative("sigma", sigma), in_unit_interval("decay", decay)
        self.mean: dict[str, Tensor] = {}  # m
        self.sums: dict[str, Tensor] = {}  # of factor * g over the micro-batches of the last sharp step
        self.weight: Tensor | float = 0.0  # the sum of these factors; not finite where a gradient was not
        self.started: Tensor | float = 0.0  # 1 once m has received a gradient, 0 before
        self.step = -1  # the last one that began

    def begin(self, parameters: Mapping[str, Tensor], t: int, total_steps: int | None, seed: int) -> None:
        """Update m by the gradients of the last sharp step, which are complete only now."""
        pieces = {name: _own_piece(p) for name, p in parameters.items()}
        if self.sums and t != self.step:  # A step that begins again, after an error, counts once.
            self.update(over_ranks=not any(hasattr(p, "to_local") for p in parameters.values()))
        self.mean = {name: _buffer(self.mean.get(name), piece) for name, piece in pieces.items()}
        self.sums = {name: _buffer(self.sums.get(name), piece) for name, piece in pieces.items()}
        torch._foreach_zero_(list(self.sums.values()))
        self.weight, self.step = 0.0, t

    def update(self, over_ranks: bool) -> None:
        """m <- decay m + (1 - decay) g, without waiting for the device to know whether g is finite."""
        mean, sums = list(self.mean.values()), list(self.sums.values())
        weight = torch.as_tensor(self.weight, device=mean[0].device).clone()
        if over_ranks:
            sum_over_ranks([*sums, weight], self.process_group)
        one, finite = torch.ones_like(weight), weight.isfinite() & (weight != 0)
        decay = torch.where(finite, self.decay * self.started * one, one)
        overflowed = ~finite
        for own in sums:  # A product with 0 would leave NaN where they are not finite.
            own.masked_fill_(overflowed, 0)
        torch._foreach_mul_(mean, decay)
        torch._foreach_mul_(sums, torch.where(finite, (one - decay) / weight, 0 * one))
        torch._foreach_add_(mean, sums)
        self.started = torch.where(finite, one, self.started * one)

    def perturb(self, gradient: Vector, weights: Vector, scratch: Vector, rho: float, factor: float | Tensor) -> None:
        """Turn g into ρ d/‖d‖, and keep it for the next m."""
        self.weight = self.weight + factor + 0 * gradient.norm()
        torch._foreach_add_([self.sums[name] for name in gradient.names], gradient)
        torch._foreach_copy_(scratch, [self.mean[name] for name in gradient.names])
        torch._foreach_mul_(scratch, factor)
        torch._foreach_add_(gradient, scratch, alpha=-self.sigma)
        torch._foreach_mul_(gradient, rho / (gradient.norm() + EPSILON))

    def state_dict(self) -> dict[str, Any]:
        """``mean``: m, and ``sums``: the gradients that it does not have yet, tensors by name of their parameter.

        ``weight`` and ``started`` are numbers or scalars, ``step`` is an integer. With ``fully_shard`` each rank has
        its own pieces of m.
        """
        return {
            "mean": {name: piece.clone() for name, piece in self.mean.items()},
            "sums": {name: piece.clone() for name, piece in self.sums.items()},
            "weight": self.weight,
            "started": self.started,
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.mean = {name: piece.clone() for name, piece in state["mean"].items()}
        self.sums = {name: piece.clone() for name, piece in state["sums"].items()}
        self.weight, self.started, self.step = state["weight"], state["started"], state["step"]


def _own_piece(parameter: Any) -> Tensor:
    """A parameter as a real tensor; of a sharded one this rank's shard."""
    piece = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return torch.view_as_real(piece.detach()) if piece.is_complex() else piece


def _buffer(old: Tensor | None, piece: Tensor) -> Tensor:
    """The old buffer, moved to the device and the type of its parameter; zeros where there is none of its shape."""
    if old is None or old.shape != piece.shape:
        return torch.zeros_like(piece, requires_grad=False)
    return old.to(piece)
