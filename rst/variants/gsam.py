"""GSAM: a smaller gap between perturbed and clean loss (Zhuang et al., 2022)."""

import torch
from torch import Tensor

from rst.checks import at_least
from rst.variants.variant import Variant
from rst.vectors import EPSILON, dot, norm


class GSAM(Variant):
    """g_s - alpha g_⊥, with g_⊥ = g - ⟨g, ĝ_s⟩ ĝ_s the part of the clean gradient orthogonal to the perturbed one.

    ``alpha`` >= 0. The authors let ρ fall with the learning rate: give `rst.RST` a function as its rho.
    """

    def __init__(self, alpha: float = 0.4) -> None:
        self.alpha = at_least(0, "alpha", alpha)

    def combine(self, sharp: list[Tensor], clean: list[Tensor], part: int) -> None:
        """g_s <- (1 + α ⟨g, ĝ_s⟩ / ‖g_s‖) g_s - α g."""
        along = dot(clean, sharp) / (norm(sharp) + EPSILON).square()
        torch._foreach_mul_(sharp, 1 + self.alpha * along)
        torch._foreach_add_(sharp, clean, alpha=-self.alpha)
