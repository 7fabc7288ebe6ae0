"""Randomized Sharpness-Aware Training (RST and G-RST) in PyTorch, for a training loop of your own.

`RST` is the method, `schedules` has the probabilities p(t) of a sharp step, `variants` the variants of SAM.
"""

from rst import schedules, variants
from rst.method import RST

__all__ = ["RST", "schedules", "variants"]

__version__ = "0.1.0"
