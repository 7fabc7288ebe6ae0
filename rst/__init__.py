"""Randomized Sharpness-Aware Training in PyTorch: `RST` for a loop of one's own, and p(t) in `rst.schedules`."""

from rst import schedules, variants
from rst.method import RST

__all__ = ["RST", "schedules", "variants"]
