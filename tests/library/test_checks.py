"""The checks of arguments: what they accept, as which type, and what they refuse."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest

from rst.checks import finite, in_unit_interval, integer, non_negative, positive_integer

ACCEPTED = [
    (non_negative, 0, 0.0),
    (non_negative, 1e300, 1e300),
    (in_unit_interval, 0, 0.0),
    (in_unit_interval, 1, 1.0),
    (positive_integer, 1, 1),
    (integer, -3, -3),
    (finite, -2, -2.0),
    (non_negative, np.float32(0.1), float(np.float32(0.1))),
    (in_unit_interval, np.int64(1), 1.0),
    (in_unit_interval, Fraction(1, 4), 0.25),
    (positive_integer, np.int64(10), 10),
    (integer, np.uint8(7), 7),
]

REFUSED = [
    *((finite, value) for value in (math.inf, -math.inf, math.nan, 10**400, "1", None, True, 1j)),
    *((non_negative, value) for value in (-1e-300, math.inf, math.nan, 10**400, "1", None, True)),
    *((in_unit_interval, value) for value in (-1e-300, 1 + 1e-15, math.nan, "0.5", None, True)),
    *((positive_integer, value) for value in (0, -1, 1.0, "1", None, True, np.float64(1), np.True_)),
    *((integer, value) for value in (1.0, "1", None, False)),
]


@pytest.mark.parametrize(("check", "value", "expected"), ACCEPTED)
def test_a_value_in_range_is_returned(check, value, expected):
    assert check("x", value) == expected
    assert type(check("x", value)) is type(expected)


@pytest.mark.parametrize(("check", "value"), REFUSED)
def test_any_other_value_is_refused_by_name(check, value):
    with pytest.raises(ValueError, match=f"^x must be .*, got {re.escape(repr(value))}"):
        check("x", value)


def test_zero_has_no_sign_so_that_it_has_one_name():
    assert math.copysign(1, in_unit_interval("x", -0.0)) == 1
