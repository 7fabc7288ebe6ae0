"""Checks of arguments. Each returns the value as a plain float or int, or raises a ValueError with name and range.

Numbers are those of `numbers`, which NumPy's scalars and fractions belong to; a bool is refused.
"""

import math
from numbers import Integral, Real


def finite(name: str, value: object) -> float:
    """The value as a float, if it is a finite number."""
    number = _float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {value!r}.")
    return number


def non_negative(name: str, value: object) -> float:
    """The value as a float, if it is a finite number >= 0."""
    number = _float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}.")
    return number


def in_unit_interval(name: str, value: object) -> float:
    """The value as a float, if it is a number in [0, 1]."""
    number = _float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}.")
    return number


def integer(name: str, value: object) -> int:
    """The value as an int, if it is an integer."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be an integer, got {value!r}.")
    return int(value)


def positive_integer(name: str, value: object) -> int:
    """The value as an int, if it is an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}.")
    return int(value)


def _float(value: object) -> float:
    """The value as a float, without the sign of zero; NaN, which is in no range, if it is no number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value) + 0.0
    except OverflowError:  # an integer beyond the range of floats
        return math.inf
