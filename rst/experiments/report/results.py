"""The results of a table's runs, cell by cell, with the paper's numbers beside them.

All tables, figures and pages are made from the frame that `results` returns.
"""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rst.experiments.errors import InputError
from rst.experiments.report.formulas import closed_form
from rst.experiments.report.labels import datasets_of, networks_of
from rst.experiments.report.naming import folder_of
from rst.experiments.report.paper import METRICS, OTHER_SEEDS, PAPER_SEEDS, of_the_paper, paper_numbers, reported
from rst.experiments.report.records import NAME, Outcome, Outcomes, outcomes_of
from rst.experiments.report.statistics import welch
from rst.experiments.runs.record import SHARPNESS_KEYS
from rst.experiments.tables.expansion import Cell, Table, runs_of


@dataclass(frozen=True)
class Filled(Table):
    """A table with what came out of its runs, read once: all files of a report agree, though runs end meanwhile."""

    outcomes: Outcomes
    frame: pd.DataFrame
    """What `results` returns."""


def fill(tables: Sequence[Table], records_alone: bool = False) -> list[Filled]:
    """The tables with what came out of their runs, by their records, else by ``records.csv`` of the tables' folder.

    Args:
        tables: the tables; one that is filled stays as it is.
        records_alone: take nothing from ``records.csv``.

    Raises:
        InputError: as for `results`.
    """
    by_folder: dict[Path, list[Table]] = {}
    for table in tables:
        if not isinstance(table, Filled):
            by_folder.setdefault(folder_of(table), []).append(table)
    known = {
        folder: outcomes_of(runs_of(own), None if records_alone else folder / NAME) for folder, own in by_folder.items()
    }
    return [table if isinstance(table, Filled) else _filled(table, known[folder_of(table)]) for table in tables]


def _filled(table: Table, outcomes: Outcomes) -> Filled:
    own = {field.name: getattr(table, field.name) for field in fields(Table)}
    ended = {run.record.id: outcomes[run.record.id] for run in table.runs if run.record.id in outcomes}
    return Filled(**own, outcomes=ended, frame=_results(table, ended))


def results(table: Table) -> pd.DataFrame:
    """One line for each cell and metric, in the order of the table file. What is not known is empty.

    Which cell: ``group network row dataset not_in_paper metric variant``.
    What was asked for: ``p`` (the mean of p(t)), ``c`` = γ/ρ, ``gamma_rst`` = p c, ``extra_propagations_expected``
    (Δη), ``extra_propagations_closed_form`` (Δη by Table 2 of the paper), ``planned`` (the number of seeds).
    What came out: ``n`` (runs that are done), ``diverged`` (runs whose loss did not stay finite), ``mean`` and ``std``
    of the metric over those that are done (errors in percent; the standard deviation has n - 1 in the denominator),
    ``extra_propagations_realised``, ``passes`` over a batch, ``train_seconds``, ``train_seconds_std``, ``timed`` (the
    number of runs whose time counts: alone on their cores, and under one condition from start to end).
    The paper's: ``paper_mean paper_std`` (percent), ``paper_relative_time`` (its time over that without sharp steps).
    The comparison: ``difference`` (our mean less the paper's), ``difference_low`` and ``difference_high`` (its 95 %
    confidence interval by Welch's t-test), ``p_value`` (of that test, two-sided).
    Times: ``relative_time`` (over that of SGD with the same network and data set), ``relative_extra_time`` (the time
    beyond SGD's over SAM's time beyond SGD's); both only where all runs that are done had equal `CONDITIONS`.
    The paper's numbers are there only for runs of the paper's images, networks and epochs.

    Raises:
        InputError: the table file has a metric, a file of the paper, or a choice of its numbers, that does not exist,
            or a metric that its runs do not measure.
    """
    return fill([table])[0].frame.copy()


def _results(table: Table, outcomes: Outcomes) -> pd.DataFrame:
    unknown = set(table.metrics) - set(METRICS)
    if unknown:
        raise InputError(f"{table.name}.yaml, metrics: there is no {min(unknown)}: choose of {', '.join(METRICS)}.")
    measured = set(table.metrics) & set(SHARPNESS_KEYS)
    without = [cell.row for cell in table.cells if not cell.spec.measure_sharpness]
    if measured and without:
        raise InputError(
            f"{table.name}.yaml, metrics: the runs of {without[0]} do not measure {min(measured)}: write "
            "measure_sharpness=true in overrides."
        )
    numbers = paper_numbers(table.paper).to_dict("records") if table.paper else []
    comparable = of_the_paper(table.cells)
    metrics = table.metrics or [""]
    lines, times = [], []
    for cell, network, dataset in zip(table.cells, networks_of(table.cells), datasets_of(table.cells), strict=True):
        ended = {run.spec.seed: outcomes[run.record.id] for run in cell.runs if run.record.id in outcomes}
        done = {seed: outcome for seed, outcome in ended.items() if not outcome.diverged}
        asked = _asked(cell, network, dataset) | {"diverged": len(ended) - len(done)}
        times += [times_of(done)] * len(metrics)
        for metric in metrics:
            papers = reported(cell, metric, numbers)  # at any scale, so that a wrong choice is always noticed
            papers = papers if comparable else dict.fromkeys(papers, math.nan)
            lines.append(asked | {"metric": metric} | _measured(done.values(), metric) | papers)
    frame = pd.DataFrame(lines)
    _compare_errors(frame)
    _compare_times(frame, times)
    return frame


def _asked(cell: Cell, network: str, dataset: str) -> dict[str, Any]:
    p = math.nan if cell.spec.mean_p is None else cell.spec.mean_p
    c = cell.spec.gamma_ratio if p else math.nan
    passes = cell.spec.build_variant().extra_passes
    return {
        "group": cell.group,
        "network": network,
        "row": cell.row,
        "dataset": dataset,
        "not_in_paper": cell.not_in_paper,
        "variant": cell.spec.variant.name,
        "p": p,
        "c": c,
        "gamma_rst": p * c if p else 0.0,
        "extra_propagations_expected": p * passes,
        "extra_propagations_closed_form": closed_form(cell.spec.schedule) * passes,
        "planned": len(cell.runs),
    }


def _measured(done: Collection[Outcome], metric: str) -> dict[str, Any]:
    """What came out of the runs of a cell; without a metric, its costs alone."""
    mean, std, n = _spread(done, metric)
    seconds, seconds_std, timed = _spread([one for one in done if one.conditions], "train_seconds")
    return {
        "n": n if metric else len(done),
        "mean": mean,
        "std": std,
        "extra_propagations_realised": _spread(done, "extra_propagations_realised")[0],
        "train_seconds": seconds,
        "train_seconds_std": seconds_std,
        "timed": timed,
        "passes": _spread(done, "propagations")[0],
    }


def _spread(done: Iterable[Outcome], key: str) -> tuple[float, float, int]:
    """Mean and standard deviation of a number over the runs that have it, and how many these are."""
    values = [outcome.summary[key] for outcome in done if key in outcome.summary]
    n = len(values)
    return float(np.mean(values)) if n else math.nan, float(np.std(values, ddof=1)) if n > 1 else math.nan, n


Times = Mapping[int, tuple[tuple[str, ...], float]]
"""Of each seed: the conditions of its run, and its training time in seconds."""


def times_of(own: Mapping[int, Outcome]) -> Times:
    """The times of the runs that are done, by seed, without those that ran under several conditions."""
    return {
        seed: (outcome.conditions, outcome.summary["train_seconds"])
        for seed, outcome in own.items()
        if outcome.conditions
    }


def _compare_errors(frame: pd.DataFrame) -> None:
    paper_n = frame["dataset"].map(PAPER_SEEDS).fillna(OTHER_SEEDS)
    ours, papers = (frame["mean"], frame["std"], frame["n"]), (frame["paper_mean"], frame["paper_std"], paper_n)
    compared = welch(*ours, *papers)
    frame[compared.columns] = compared


def _compare_times(frame: pd.DataFrame, times: Sequence[Times]) -> None:
    """Times over those of SGD and SAM with the same network and data set, in the same group or in no group.

    ``times`` are the `times_of` each line. They are compared by the seeds that all the compared lines have under equal
    conditions, if these are all the runs of the line that are done: a few of them may be the slow ones.
    """
    frame["relative_time"] = frame["relative_extra_time"] = math.nan
    if not any(times):
        return
    for i, line in frame.iterrows():
        same = frame[(frame["network"] == line["network"]) & (frame["dataset"] == line["dataset"])]
        same = same[same["group"].isin(["", line["group"]])].sort_values("group", ascending=False, kind="stable")
        plain, sharp = same[same["p"] == 0], same[(same["p"] == 1) & (same["c"] == 1) & (same["variant"] == "sam")]
        if len(plain):
            own, base = _means_of_equals(line["n"], times[i], times[plain.index[0]])
            frame.loc[i, "relative_time"] = _ratio(own, base)
            if len(sharp):
                own, base, sam = _means_of_equals(line["n"], times[i], times[plain.index[0]], times[sharp.index[0]])
                frame.loc[i, "relative_extra_time"] = _ratio(own - base, sam - base)


def _ratio(time: float, over: float) -> float:
    return time / over if over else math.nan


def _means_of_equals(n: int, *times: Times) -> list[float]:
    """The mean time of each, over ``n`` seeds that all have under the same conditions; nan where they are fewer."""
    seeds = equal_conditions(times)
    return [statistics.mean(own[seed][1] for seed in seeds) if 0 < len(seeds) == n else math.nan for own in times]


def equal_conditions(times: Sequence[Times]) -> list[int]:
    """The seeds whose runs all have a time, taken under the same conditions."""
    return [seed for seed in times[0] if len({own[seed][0] if seed in own else None for own in times}) == 1]
