"""ASAM: the perturbation of a weight is in proportion to its size (Kwon et al., 2021)."""

import torch
from torch import Tensor

from rst.checks import non_negative
from rst.perturbation import EPSILON, norm
from rst.variants.variant import Variant


class ASAM(Variant):
    """ε = ρ T² g / ‖T g‖ with the diagonal T = |θ| + eta, so that ‖T⁻¹ ε‖ = ρ. All parameters are scaled, biases too.

    Args:
        eta: >= 0, in units of the weights. With 0, a weight that is zero is not perturbed.
    """

    def __init__(self, eta: float = 0.0) -> None:
        self.eta = non_negative("eta", eta)

    def perturb(self, out: list[Tensor], weights: list[Tensor], gradients: list[Tensor], rho: float) -> None:
        """Overwrite ``out`` with ρ T² g / ‖T g‖."""
        scale = torch._foreach_abs(weights)
        torch._foreach_add_(scale, self.eta)  # T
        torch._foreach_copy_(out, gradients)
        torch._foreach_mul_(out, scale)  # T g
        radius = rho / (norm(out) + EPSILON)
        torch._foreach_mul_(out, scale)
        torch._foreach_mul_(out, radius)
