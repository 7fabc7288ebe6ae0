"""The numbers that the paper reports, from ``results/paper``, and which of them belongs to a cell of a table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd

from rst.experiments.compose import CONFIGS
from rst.experiments.errors import InputError
from rst.experiments.runs.record import SHARPNESS_KEYS
from rst.experiments.tables.expansion import Cell

PAPER = CONFIGS.parent / "results" / "paper"
METRICS = {
    "test_error": ["error_pct", "top1_error_pct"],
    "top5_error": ["top5_error_pct"],
    "train_error": [],
    "validation_error": [],
    **{key: [] for key in SHARPNESS_KEYS},
}
"""The metrics that a table may show, and their names in the files of the paper's numbers."""
PAPER_SEEDS = {"ImageNet": 3}
"""How many seeds the paper averages over, by data set (Sections 3.1 and 4); `OTHER_SEEDS` on the other data sets."""
OTHER_SEEDS = 5


def of_the_paper(cells: Iterable[Cell]) -> bool:
    """Whether the runs have the paper's images, networks and epochs, so that its numbers are a target for them."""
    return all(cell.spec.scale == "paper" and cell.spec.dataset.source != "digits" for cell in cells)


@cache
def paper_numbers(name: str) -> pd.DataFrame:
    """The numbers of ``results/paper/<name>.csv``, one line each.

    All columns are texts, but for ``mean`` and ``std``, which are empty where the paper's text has lost the number.
    """
    file = PAPER / f"{name}.csv"
    if not file.exists():
        raise InputError(f"paper: {name}: there is no {file.name} among the paper's numbers in {PAPER.name}/.")
    numbers = pd.read_csv(file, dtype=str, keep_default_na=False)
    return numbers.assign(mean=pd.to_numeric(numbers["mean"]), std=pd.to_numeric(numbers["std"]))


def reported(cell: Cell, metric: str, numbers: Sequence[Mapping[Any, Any]]) -> dict[str, float]:
    """The paper's error, and its training time over the time of the scheme to which it adds the extra minutes."""
    found = dict.fromkeys(("paper_mean", "paper_std", "paper_relative_time"), math.nan)
    if not numbers or cell.not_in_paper:
        return found
    error = _number(numbers, cell, METRICS.get(metric, []), cell.paper)
    if error is not None:
        found |= {"paper_mean": error["mean"], "paper_std": error["std"]}
    base, extra = cell.paper, _number(numbers, cell, ["extra_time_min"], cell.paper)
    if extra is not None:
        base = {key: cell.paper[key] for key in cell.paper if key == "source_note"} | {"scheme": extra["relative_to"]}
    whole = _number(numbers, cell, ["time_min"], base)
    if whole is not None:
        found["paper_relative_time"] = 1 + (0 if extra is None else extra["mean"]) / whole["mean"]
    return found


def _number(
    numbers: Sequence[Mapping[Any, Any]], cell: Cell, metrics: list[str], picks: dict[str, str]
) -> Mapping[Any, Any] | None:
    """The paper's number for the cell: its line has the cell's network and data set, and these values of columns.

    A value may offer alternatives, separated by `` | ``. A ``source_note`` has to begin with its value.
    """
    place = f"{cell.table}.yaml, {cell.row}, paper"
    where = {"model": [cell.network], "dataset": [cell.dataset, "Cifar10&100"], "metric": metrics}
    lines = [line for line in numbers if all(line[column] in values for column, values in where.items())]
    for key, value in picks.items():
        if key not in numbers[0]:
            raise InputError(f"{place}: there is no column {key}: choose of {', '.join(numbers[0])}.")
        begins = key == "source_note"
        lines = [line for line in lines if (line[key].startswith(value) if begins else line[key] in value.split(" | "))]
    if len(lines) > 1:
        raise InputError(
            f"{place}: {len(lines)} numbers fit {cell.network} {cell.dataset}: name another column as well."
        )
    return lines[0] if lines else None
