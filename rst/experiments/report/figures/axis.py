"""The x axis of figures of errors: the cost Δη, a parameter of the schedules, or any number of the config."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from rst.experiments.errors import InputError
from rst.experiments.tables.expansion import Cell, Table

COST = "extra_propagations_expected"
REALISED = "extra_propagations_realised"
COST_LABEL = r"$\Delta\eta$, extra passes a step"
PARAMETERS = {
    "a": "$a$, $p$ in the first half",
    "b": "$b$, $p$ at the first step",
}
"""The axis labels of parameters that do not change Δη."""
FAR = 10
"""A key whose largest value is so many times its smallest has a logarithmic axis."""


def check_x(table: Table) -> None:
    """Raise `InputError` if the table's ``x`` is no key of its runs, or has no number in one that has sharp steps."""
    if table.x:
        for cell in table.cells:
            value_of(table, cell)


def value_of(table: Table, cell: Cell) -> float:
    """The cell's number at the key ``x`` of the table; nan for a run without sharp steps, which has none of them.

    Raises:
        InputError: there is no such key, or its value is no number.
    """
    value: Any = cell.spec.dump()
    for part in table.x.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if cell.spec.mean_p == 0 and value is None:
        return float("nan")
    raise InputError(
        f"{table.name}.yaml, x: {table.x} is {value} in row {cell.row}: write a key of the config that is a "
        "number in every row, such as variant.rho."
    )


def abscissa(table: Table, data: pd.DataFrame) -> "pd.Series[float]":
    """The x of each line: the table's key, or Δη; realised Δη where no p(t) says it before the training."""
    if table.x:
        return data["cell"].map(lambda cell: value_of(table, cell)).astype(float)
    return data[COST].fillna(data[REALISED])


def axis_label(table: Table) -> str:
    """The label of that axis."""
    return table.x or COST_LABEL


def is_wide(x: Sequence[float]) -> bool:
    """Whether the values are positive and far enough apart for a logarithmic axis."""
    known = [value for value in x if value == value]
    return bool(known) and min(known) > 0 and max(known) > FAR * min(known)


def parameter_of(cells: Iterable[Cell]) -> str | None:
    """The parameter of the schedules that differs between the cells, if exactly one does."""
    settings = [{"name": cell.spec.schedule.name, **cell.spec.schedule.options} for cell in cells]
    keys = {key for setting in settings for key in setting}
    differing = [key for key in keys if len({setting.get(key) for setting in settings}) > 1]
    return differing[0] if len(differing) == 1 and differing != ["name"] else None


def parameter_at_one_cost(rows: pd.DataFrame) -> str | None:
    """The parameter of a family whose rows all have the same Δη by Table 2; else None."""
    return parameter_of(rows["cell"]) if rows["extra_propagations_closed_form"].round(9).nunique() == 1 else None
