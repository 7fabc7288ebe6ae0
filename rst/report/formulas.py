"""Table 2: what each family of schedules costs, as the formula that the paper prints."""

import math
from collections.abc import Callable

from omegaconf import DictConfig

TABLE_2: dict[str, Callable[..., float]] = {
    "never": lambda: 0.0,
    "always": lambda: 1.0,
    "constant": lambda p: p,
    "piecewise": lambda a, b: 1 + 2 * a * b - b - a,
    "tail": lambda fraction: fraction,  # a = 0, b = 1 - fraction
    "linear": lambda m: m,  # p(T/2), as below
    "linear_through": lambda b: 0.5,
}
"""Δη by the name of the schedule and its parameters, for T without end: steps are off by at most 1/T."""


def closed_form(schedule: DictConfig) -> float:
    """Δη of a config's ``schedule`` by Table 2; nan where it has no such family."""
    parameters = {str(key): value for key, value in schedule.items() if key != "_target_"}
    family = schedule._target_.rpartition(".")[2]
    return TABLE_2[family](**parameters) if family in TABLE_2 else math.nan
