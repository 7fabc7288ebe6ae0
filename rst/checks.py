"""Checks of arguments."""

import math


def at_least(low: float, name: str, value: object) -> float:
    """The value as a float, if it is a finite number from ``low``; else ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < math.inf:
        raise ValueError(f"{name} must be a number from {low:g}, got {value!r}.")
    return float(value)


def in_unit_interval(name: str, value: object) -> float:
    """The value as a float, if it is a number in [0, 1]; else ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}.")
    return float(value)
