"""GSAM: SAM that also narrows the gap between the perturbed and the clean loss (Zhuang et al., 2022)."""

import torch

from rst.checks import non_negative
from rst.perturbation import EPSILON, Vector
from rst.variants.variant import Variant


class GSAM(Variant):
    """g_s - alpha g_⊥, with g_⊥ = g - ⟨g, ĝ_s⟩ ĝ_s, the component of the clean gradient orthogonal to ĝ_s = g_s/‖g_s‖.

    Zhuang et al., 2022 (arXiv 2203.08065); Section B.5. The authors let ρ fall with the learning rate: give `rst.RST` a
    callable rho.

    Args:
        alpha: >= 0, else ValueError; with 0 this is SAM.

    Example:
        >>> falling = lambda t, total_steps: 0.1 * (1 - t / total_steps)
        >>> model, always = torch.nn.Linear(2, 1), rst.schedules.always()
        >>> method = rst.RST(model, falling, always, total_steps=100, variant="gsam")
        >>> loss = method.backward(lambda: model(torch.ones(4, 2)).square().mean())
        >>> method.propagations
        2.0
    """

    needs_whole_parameters = True

    def __init__(self, alpha: float = 0.4) -> None:
        self.alpha = non_negative("alpha", alpha)

    def combine(self, sharp: Vector, clean: Vector, micro_batch: int) -> None:
        """g_s <- (1 + α ⟨g, g_s⟩ / ‖g_s‖²) g_s - α g, which is g_s - α g_⊥."""
        along = clean.dot(sharp) / (sharp.norm() + EPSILON).square()
        torch._foreach_mul_(sharp, 1 + self.alpha * along)
        torch._foreach_add_(sharp, clean, alpha=-self.alpha)
