"""Randomized Sharpness-Aware Training (RST and G-RST) in PyTorch, for a training loop of your own.

`RST` is the method, `schedules` has the probabilities p(t) of a sharp step, `variants` the variants of SAM. `sharpness`
measures how flat a minimum is.
"""

from rst import schedules, variants
from rst.method import RST
from rst.sharpness import sharpness

__all__ = ["RST", "schedules", "sharpness", "variants"]

__version__ = "0.2.0"
