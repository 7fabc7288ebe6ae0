"""ASAM: the perturbation of a weight is in proportion to its size (Kwon et al., 2021)."""

import torch
from torch import Tensor

from rst.checks import non_negative
from rst.perturbation import EPSILON, Vector
from rst.variants.variant import Variant


class ASAM(Variant):
    """ε = ρ T² g / ‖T g‖ with the diagonal T = ``|θ| + eta``, so that ‖T⁻¹ ε‖ = ρ. Biases are scaled like weights.

    Kwon et al., 2021 (arXiv 2102.11600); Section B.5. With eta = 0, ρ has no unit, since it is relative to the weights.

    Args:
        eta: >= 0, in units of the weights, else ValueError. With 0, a weight that is zero is not perturbed.

    Example:
        >>> model, variant = torch.nn.Linear(2, 1), rst.variants.ASAM(eta=0.01)
        >>> method = rst.RST(model, rho=0.5, schedule=rst.schedules.always(), variant=variant)
        >>> method.expected_extra_propagations
        1.0
    """

    def __init__(self, eta: float = 0.0) -> None:
        self.eta = non_negative("eta", eta)

    def perturb(self, gradient: Vector, weights: Vector, scratch: Vector, rho: float, factor: float | Tensor) -> None:
        """Turn g into ρ T² g / ‖T g‖."""
        scale = weights  # The sign of a factor that enters twice, and once in a norm, has no effect.
        if self.eta:
            scale = scratch
            torch._foreach_copy_(scale, weights)
            torch._foreach_abs_(scale)
            torch._foreach_add_(scale, self.eta)
        torch._foreach_mul_(gradient, scale)  # T g
        radius = rho / (gradient.norm() + EPSILON)
        torch._foreach_mul_(gradient, scale)
        torch._foreach_mul_(gradient, radius)
