"""Weight decay as a part of the loss."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def l2(parameters: Iterable[Tensor], strength: float) -> Tensor:
    """½ λ Σ‖w‖² over all parameters, biases and normalisation included: a scalar to add to the loss.

    As a part of L it enters the clean gradient, the norm of that gradient, and the perturbed gradient (there as
    λ(θ + ε)). The ``weight_decay`` of an optimizer enters none of them.
    """
    return _L2.apply(strength, *parameters)


class _L2(torch.autograd.Function):
    """One graph node with a multi-tensor backward, where plain operations would be a square and a sum per parameter."""

    @staticmethod
    def forward(ctx: Any, strength: float, *parameters: Tensor) -> Tensor:
        ctx.strength = strength
        ctx.save_for_backward(*parameters)
        norms = torch.stack(torch._foreach_norm(list(parameters)))
        return norms.square().sum() * (strength / 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *torch._foreach_mul(list(ctx.saved_tensors), gradient * ctx.strength)
