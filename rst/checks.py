"""Checks of arguments. Each returns the value, or raises a ValueError that names the argument and its range."""

import math


def non_negative(name: str, value: object) -> float:
    """The value as a float, if it is a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}.")
    return float(value)


def in_unit_interval(name: str, value: object) -> float:
    """The value as a float, if it is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}.")
    return float(value)


def positive_integer(name: str, value: object) -> int:
    """The value, if it is an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}.")
    return value
