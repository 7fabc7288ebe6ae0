"""Δη, the extra passes a step, of each family of schedules: the formulas of Table 2 of the paper."""

import math
from collections.abc import Callable

from rst.experiments.keys import ScheduleOptions

TABLE_2: dict[str, Callable[..., float]] = {
    "never": lambda: 0.0,
    "always": lambda: 1.0,
    "constant": lambda p: p,
    "piecewise": lambda a, b: 1 + 2 * a * b - b - a,
    "tail": lambda fraction: fraction,  # piecewise with a = 0 and b = 1 - fraction
    "linear": lambda m: m,  # p(T/2), about which p(t) is symmetric
    "linear_through": lambda b: 0.5,  # p(T/2), likewise
}
"""The limit of Δη for large T, as a function of the schedule's parameters, by the name of the schedule. Over T steps,
Δη differs from it by at most 1/T."""


def closed_form(schedule: ScheduleOptions) -> float:
    """Δη of a schedule by Table 2; nan for a family that the table does not have."""
    formula = TABLE_2.get(schedule.name)
    return formula(**schedule.options) if formula else math.nan
