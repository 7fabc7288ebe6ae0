"""GSAM: SAM that also narrows the gap between the perturbed and the clean loss (Zhuang et al., 2022)."""

import torch

from rst.checks import non_negative
from rst.perturbation import EPSILON, Vector
from rst.variants.variant import Variant


class GSAM(Variant):
    """g_s - alpha g_⊥, with g_⊥ = g - ⟨g, ĝ_s⟩ ĝ_s, the component of the clean gradient orthogonal to ĝ_s = g_s/‖g_s‖.

    Args:
        alpha: >= 0; with 0 this is SAM. The authors let ρ fall with the learning rate: give `rst.RST` a callable rho.
    """

    needs_whole_parameters = True

    def __init__(self, alpha: float = 0.4) -> None:
        self.alpha = non_negative("alpha", alpha)

    def combine(self, sharp: Vector, clean: Vector, micro_batch: int) -> None:
        """g_s <- (1 + α ⟨g, g_s⟩ / ‖g_s‖²) g_s - α g, which is g_s - α g_⊥."""
        along = clean.dot(sharp) / (sharp.norm() + EPSILON).square()
        torch._foreach_mul_(sharp, 1 + self.alpha * along)
        torch._foreach_add_(sharp, clean, alpha=-self.alpha)
