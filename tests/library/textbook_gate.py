"""A plain version of AE-SAM's rule (Jiang et al., ICLR 2023), in exact arithmetic."""

from collections.abc import Sequence
from fractions import Fraction


def ae_sam(norms: Sequence[float], total_steps: int, lambda_1: float, lambda_2: float, delta: float) -> list[bool]:
    """Whether each step is sharp, n_t >= μ_t + c_t σ_t, given n_t = ‖g_t‖² of each."""
    l_1, l_2, d = Fraction(lambda_1), Fraction(lambda_2), Fraction(delta)
    mean, variance, sharp = Fraction(norms[0]), Fraction(0), []
    for t, n in enumerate(map(Fraction, norms)):
        mean = d * mean + (1 - d) * n
        variance = d * variance + (1 - d) * (n - mean) ** 2
        c = Fraction(t, total_steps) * l_1 + (1 - Fraction(t, total_steps)) * l_2
        sharp.append(at_least(n - mean, c, variance))
    return sharp


def at_least(x: Fraction, c: Fraction, square: Fraction) -> bool:
    """x >= c √square, without the root."""
    left, right = signed_square(x), signed_square(c) * square
    return left >= right


def signed_square(x: Fraction) -> Fraction:
    """x |x|, which grows with x."""
    return x * abs(x)
