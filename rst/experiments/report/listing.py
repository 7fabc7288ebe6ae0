"""Own runs as text: lists, one run in full, and what differs between several."""

from collections.abc import Sequence
from functools import partial
from statistics import mean, stdev
from typing import Any

import yaml
from tabulate import tabulate

from rst.experiments.errors import InputError
from rst.experiments.runs.catalogue import by_label, differences, outcome, written
from rst.experiments.runs.record import Record

COLUMNS = {
    "status": "status",
    "epochs": "epochs",
    "test_error": "test error [%]",
    "validation_error": "validation error [%]",
    "extra_propagations": "extra passes a step",
    "train_seconds": "time [s]",
}
"""What a list says of a run, in the order of its columns, by the name under which it can be sorted."""

NOT_COMPARED = ("epochs", "seed", "evaluations", "forward_passes", "backward_passes", "checkpoint_seconds")
"""Keys of a summary that say nothing beside the config and the others."""


def listed(records: Sequence[Record], means: bool = False, sort: str | None = None) -> str:
    """One line for each run or, with ``means``, for all runs that differ in their seed alone.

    A run whose files are damaged has a line that says so.

    Raises:
        InputError: there is no column ``sort``.
    """
    if sort is not None and sort not in COLUMNS:
        raise InputError(f"--sort {sort} is no column: write one of {', '.join(COLUMNS)}.")
    outcomes = {}
    for record in records:
        try:
            outcomes[record.id] = outcome(record)
        except InputError:
            outcomes[record.id] = dict.fromkeys(COLUMNS) | {"status": "damaged"}
    if means:
        whole = [record for record in records if outcomes[record.id]["status"] == "done"]
        lines = [(label, _mean([outcomes[record.id] for record in group])) for label, group in by_label(whole).items()]
    else:
        lines = list(outcomes.items())
    if sort is not None:
        lines.sort(key=lambda line: (line[1][sort] is None, line[1][sort]))
    keys = [key for key in COLUMNS if any(line.get(key) is not None for _, line in lines)]
    spread = ["n"] * means
    rows = [[name, *(_text(line, key) for key in [*keys, *spread])] for name, line in lines]
    header = ["runs that are done" if means else "id", *(COLUMNS[key] for key in keys), *spread]
    return tabulate(rows, header, tablefmt="plain", disable_numparse=True) if rows else ""


def _mean(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The means of the runs of several seeds, their number and, under ``<key>±``, their standard deviations."""
    found: dict[str, Any] = {"n": len(outcomes)}
    for key in list(COLUMNS)[2:]:
        values = [own[key] for own in outcomes if own[key] is not None]
        if values:
            found |= {key: mean(values), f"{key}±": stdev(values) if len(values) > 1 else None}
    return {**dict.fromkeys(COLUMNS), **found}


def _text(line: dict[str, Any], key: str) -> str:
    value, spread = line.get(key), line.get(f"{key}±")
    if not isinstance(value, float):
        return "" if value is None else str(value)
    digits = {"train_seconds": 1, "extra_propagations": 3}.get(key, 2)
    return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def shown(record: Record) -> str:
    """The config of a run, what it ran on at its latest start, and its results, as YAML."""
    parts: dict[str, Any] = {"id": record.id, "status": record.status, "config": record.spec.dump()}
    if record.starts:
        parts["environment"] = record.environment
    if record.diverged:
        parts["diverged"] = record.divergence
    if record.metrics:
        parts["latest epoch"] = record.metrics[-1]
    if record.done:
        parts["summary"] = record.summary
    return yaml.safe_dump(parts, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def compared(records: Sequence[Record]) -> str:
    """The keys and the results in which runs differ, one column for each run.

    Raises:
        InputError: there is one run alone.
    """
    if len(records) < 2:
        raise InputError(f"{records[0].id} is one run: write another one, to compare them.")
    ids = [record.id for record in records]
    plain = partial(tabulate, tablefmt="plain", disable_numparse=True)
    names = [chr(ord("A") + index) if len(ids) <= 26 else str(index + 1) for index in range(len(ids))]
    keys = [[key, *map(written, row)] for key, row in differences(records).items()]
    results = [record.summary if record.done else {} for record in records]
    rows = []
    for key in dict.fromkeys(key for own in results for key in own if key not in NOT_COMPARED):
        row = [own.get(key) for own in results]
        if any(value != row[0] for value in row):
            rows.append([key, *("" if value is None else f"{value:.6g}" for value in row), *_change(row)])
    parts = [f"{name}  {run}" for name, run in zip(names, ids, strict=True)]
    parts += ["", plain(keys, ["key", *names]) if keys else "no key differs."]
    parts += ["", plain(rows, ["result", *names, *(["B - A"] * (len(ids) == 2))])] if rows else []
    return "\n".join([*parts, *(f"{name} is not done." for name, own in zip(names, results, strict=True) if not own)])


def _change(values: Sequence[Any]) -> list[str]:
    """The difference of two numbers; nothing for more than two runs."""
    if len(values) != 2:
        return []
    return ["" if None in values else f"{values[1] - values[0]:+.4g}"]
