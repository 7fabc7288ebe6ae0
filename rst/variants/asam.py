"""ASAM: a perturbation relative to the size of each weight (Kwon et al., 2021)."""

import torch
from torch import Tensor

from rst.checks import at_least
from rst.variants.variant import Variant
from rst.vectors import EPSILON, norm


class ASAM(Variant):
    """ε = ρ T² g / ‖T g‖ with T = |θ| + eta, element by element and in every tensor.

    With ``eta`` 0 a weight that is zero stays where it is.
    """

    def __init__(self, eta: float = 0.0) -> None:
        self.eta = at_least(0, "eta", eta)

    def perturb(self, out: list[Tensor], weights: list[Tensor], gradients: list[Tensor], rho: float) -> None:
        """Write ρ T² g / ‖T g‖."""
        size = torch._foreach_abs(weights)
        torch._foreach_add_(size, self.eta)
        torch._foreach_copy_(out, gradients)
        torch._foreach_mul_(out, size)  # T g
        scale = rho / (norm(out) + EPSILON)
        torch._foreach_mul_(out, size)
        torch._foreach_mul_(out, scale)
