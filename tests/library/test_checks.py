"""The checks of arguments: what they accept, as which type, and what they refuse."""

import math
import re

import pytest

from rst.checks import in_unit_interval, non_negative, positive_integer

ACCEPTED = [
    (non_negative, 0, 0.0),
    (non_negative, 1e300, 1e300),
    (in_unit_interval, 0, 0.0),
    (in_unit_interval, 1, 1.0),
    (positive_integer, 1, 1),
]

REFUSED = [
    *((non_negative, value) for value in (-1e-300, math.inf, math.nan, "1", None, True)),
    *((in_unit_interval, value) for value in (-1e-300, 1 + 1e-15, math.nan, "0.5", None, True)),
    *((positive_integer, value) for value in (0, -1, 1.0, "1", None, True)),
]


@pytest.mark.parametrize(("check", "value", "expected"), ACCEPTED)
def test_a_value_in_range_is_returned(check, value, expected):
    assert check("x", value) == expected
    assert type(check("x", value)) is type(expected)


@pytest.mark.parametrize(("check", "value"), REFUSED)
def test_any_other_value_is_refused_by_name(check, value):
    with pytest.raises(ValueError, match=f"^x must be .*, got {re.escape(repr(value))}"):
        check("x", value)
