"""The results of a table's runs, cell by cell, with the paper's numbers beside them.

All tables, figures and pages are made from the frame that `results` returns.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
from scipy import stats

from rst.experiments.compose import CONFIGS
from rst.experiments.errors import InputError
from rst.experiments.report.formulas import closed_form
from rst.experiments.report.labels import datasets_of, images_of, networks_of
from rst.experiments.runs.record import SHARPNESS_KEYS, SUMMARY_KEYS
from rst.experiments.tables.expansion import Cell, PlannedRun, Table

PAPER = CONFIGS.parent / "results" / "paper"
METRICS = {
    "test_error": ["error_pct", "top1_error_pct"],
    "top5_error": ["top5_error_pct"],
    **{key: [] for key in SHARPNESS_KEYS},
}
"""The metrics that a table may show, and their names in the files of the paper's numbers."""
PAPER_SEEDS = {"ImageNet": 3}
"""How many seeds the paper averages over, by data set (Sections 3.1 and 4); `OTHER_SEEDS` on the other data sets."""
OTHER_SEEDS = 5
CONFIDENCE = 0.95


def of_the_paper(cells: Iterable[Cell]) -> bool:
    """Whether the runs have the paper's images, networks and epochs, so that its numbers are a target for them."""
    return all(cell.spec.scale == "paper" and cell.spec.dataset.source != "digits" for cell in cells)


def scale_of(table: Table) -> str:
    """The scale of the table's runs; empty for runs on the digits alone, which at any scale are not the paper's."""
    digits_alone = all(cell.spec.dataset.name == "digits" for cell in table.cells)
    return "" if digits_alone and table.cells[0].spec.scale == "paper" else table.cells[0].spec.scale


def command_of(table: Table) -> str:
    """The command that trains the table's missing runs and writes it."""
    return f"make {table.name}" + (f" SCALE={scale}" if (scale := scale_of(table)) else "")


def folder_of(table: Table) -> Path:
    """The folder for the table's files. Each scale has its own, and so have digits in place of a data set."""
    spec = table.cells[0].spec
    scale = spec.scale + "-digits" * any(cell.spec.stands_in for cell in table.cells)
    return Path(spec.paths.runs).parent / ("" if scale == "paper" else scale)


def stem_of(table: Table) -> str:
    """How the names of the table's files begin: off the paper's scale with the scale, for files leave their folder."""
    folder = folder_of(table)
    return table.name if folder == Path(table.cells[0].spec.paths.runs).parent else f"{table.name}-{folder.name}"


def title_of(table: Table) -> str:
    """The table's title; off the paper's scale with the images, which are not those that the paper's tables are of."""
    at_scale = table.runs and scale_of(table) not in ("", "paper")
    return f"{table.title}: {images_of(table.cells)}" if at_scale else table.title


def summaries(runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """The ids and the summaries of the runs that are done, one line each."""
    lines = [{"id": run.record.id} | run.record.summary for run in runs if run.record.done]
    frame = pd.DataFrame(lines, columns=["id", *SUMMARY_KEYS, "top5_error", *SHARPNESS_KEYS])
    # A memory that is not known would make floats of those that are.
    return frame.astype({"peak_memory_bytes": "Int64", **dict.fromkeys(SHARPNESS_KEYS, float)})


CONDITIONS = ("device", "devices", "threads", "autocast", "tf32", "channels_last", "compile", "deterministic")
"""What a run ran on and how, as far as its time depends on it; times are compared only where all of it is equal."""


def _times(runs: Sequence[PlannedRun]) -> dict[int, tuple[str, float]]:
    """Of each seed whose run is done: its conditions, and its training time in seconds."""
    times = {}
    for run in runs:
        if run.record.done and (run.record.folder / "starts.jsonl").exists():
            starts = [run.record.environment, *run.record.starts]  # the former raises where there is no whole line
            conditions = {json.dumps({key: start.get(key) for key in CONDITIONS}) for start in starts}
            if len(conditions) == 1:  # else its time is a sum of unlike parts
                times[run.spec.seed] = conditions.pop(), run.record.summary["train_seconds"]
    return times


_kept: dict[int, pd.DataFrame] | None = None


@contextmanager
def one_look() -> Iterator[None]:
    """Inside, the records of a table are read once, so that all files of a report agree though runs end meanwhile.

    The tables must live until the end, and be the same objects.
    """
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def results(table: Table) -> pd.DataFrame:
    """One line for each cell and metric, in the order of the table file. What is not known is empty.

    Which cell: ``group network row dataset not_in_paper metric variant``.
    What was asked for: ``p`` (the mean of p(t)), ``c`` = γ/ρ, ``gamma_rst`` = p c, ``extra_propagations_expected``
    (Δη), ``extra_propagations_closed_form`` (Δη by Table 2 of the paper), ``planned`` (the number of seeds).
    What came out: ``n`` (runs that are done), ``diverged`` (runs whose loss did not stay finite), ``mean`` and ``std``
    of the metric over those that are done (errors in percent; the standard deviation has n - 1 in the denominator),
    ``extra_propagations_realised``, ``train_seconds``, ``train_seconds_std``.
    The paper's: ``paper_mean paper_std`` (percent), ``paper_relative_time`` (its time over that without sharp steps).
    The comparison: ``difference`` (our mean less the paper's), ``difference_low`` and ``difference_high`` (its 95 %
    confidence interval by Welch's t-test), ``p_value`` (of that test, two-sided).
    Times: ``relative_time`` (over that of SGD with the same network and data set), ``relative_extra_time`` (the time
    beyond SGD's over SAM's time beyond SGD's); both over the seeds whose runs had equal `CONDITIONS`.
    The paper's numbers are there only for runs of the paper's images, networks and epochs.

    Raises:
        InputError: the table file has a metric, a file of the paper, or a choice of its numbers, that does not exist,
            or a metric that its runs do not measure.
    """
    if _kept is None:
        return _results(table)
    if id(table) not in _kept:
        _kept[id(table)] = _results(table)
    return _kept[id(table)].copy()


def _results(table: Table) -> pd.DataFrame:
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
    shown = of_the_paper(table.cells)
    lines, times = [], []
    for cell, network, dataset in zip(table.cells, networks_of(table.cells), datasets_of(table.cells), strict=True):
        asked, own = _asked(cell, network, dataset), summaries(cell.runs)
        asked["diverged"] = sum(run.record.diverged for run in cell.runs)
        times += [_times(cell.runs)] * max(1, len(table.metrics))
        for metric in table.metrics or [""]:
            reported = _reported(cell, metric, numbers)  # at any scale, so that a wrong choice is always noticed
            reported = reported if shown else dict.fromkeys(reported, math.nan)
            lines.append(asked | {"metric": metric} | _measured(own, metric) | reported)
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


MEASURED = ("mean", "std", "extra_propagations_realised", "train_seconds", "train_seconds_std")
"""What came out of the runs of a cell, beside their number."""


def _measured(own: pd.DataFrame, metric: str) -> dict[str, Any]:
    if own.empty:
        return {"n": 0} | dict.fromkeys(MEASURED, math.nan)
    return {
        "n": own[metric or "id"].count(),
        "mean": own[metric].mean() if metric else math.nan,
        "std": own[metric].std() if metric else math.nan,
        "extra_propagations_realised": own["extra_propagations_realised"].mean(),
        "train_seconds": own["train_seconds"].mean(),
        "train_seconds_std": own["train_seconds"].std(),
    }


def _compare_errors(frame: pd.DataFrame) -> None:
    """Welch's t-test between our mean and the paper's; it does not take the two variances for equal.

    Without a standard deviation, as of one run, there is no test.
    """
    paper_n = frame["dataset"].map(PAPER_SEEDS).fillna(OTHER_SEEDS)
    ours, papers = frame["std"] ** 2 / frame["n"], frame["paper_std"] ** 2 / paper_n  # variances of the means
    error = (ours + papers) ** 0.5
    freedom = (ours + papers) ** 2 / (ours**2 / (frame["n"] - 1) + papers**2 / (paper_n - 1))  # Welch and Satterthwaite
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error
    frame["difference"] = frame["mean"] - frame["paper_mean"]
    frame["difference_low"] = frame["difference"] - half
    frame["difference_high"] = frame["difference"] + half
    frame["p_value"] = 2 * stats.t.sf((frame["difference"] / error).abs(), freedom)


def _compare_times(frame: pd.DataFrame, times: Sequence[dict[int, tuple[str, float]]]) -> None:
    """Times over those of SGD and SAM with the same network and data set, in the same group or in no group.

    ``times`` are the `_times` of each line. Only seeds that all the compared lines have under equal conditions count.
    """
    frame["relative_time"] = frame["relative_extra_time"] = math.nan
    if not any(times):
        return
    for i, line in frame.iterrows():
        same = frame[(frame["network"] == line["network"]) & (frame["dataset"] == line["dataset"])]
        same = same[same["group"].isin(["", line["group"]])].sort_values("group", ascending=False, kind="stable")
        plain, sharp = same[same["p"] == 0], same[(same["p"] == 1) & (same["c"] == 1) & (same["variant"] == "sam")]
        if len(plain):
            own, base = _means_of_equals(times[i], times[plain.index[0]])
            frame.loc[i, "relative_time"] = _ratio(own, base)
            if len(sharp):
                own, base, sam = _means_of_equals(times[i], times[plain.index[0]], times[sharp.index[0]])
                frame.loc[i, "relative_extra_time"] = _ratio(own - base, sam - base)


def _ratio(time: float, over: float) -> float:
    return time / over if over else math.nan


def _means_of_equals(*times: dict[int, tuple[str, float]]) -> list[float]:
    """The mean time of each, over the seeds that all have under the same conditions; nan where there are none."""
    seeds = [seed for seed in times[0] if len({own.get(seed, ("",))[0] for own in times}) == 1]
    return [mean(own[seed][1] for seed in seeds) if seeds else math.nan for own in times]


# ------------------------------------------------------------------------------------------------ the paper's numbers


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


def _reported(cell: Cell, metric: str, numbers: Sequence[Mapping[Any, Any]]) -> dict[str, float]:
    """The paper's error, and its training time over the time of the scheme to which it adds the extra minutes."""
    reported = dict.fromkeys(("paper_mean", "paper_std", "paper_relative_time"), math.nan)
    if not numbers or cell.not_in_paper:
        return reported
    error = _number(numbers, cell, METRICS.get(metric, []), cell.paper)
    if error is not None:
        reported |= {"paper_mean": error["mean"], "paper_std": error["std"]}
    base, extra = cell.paper, _number(numbers, cell, ["extra_time_min"], cell.paper)
    if extra is not None:
        base = {key: cell.paper[key] for key in cell.paper if key == "source_note"} | {"scheme": extra["relative_to"]}
    whole = _number(numbers, cell, ["time_min"], base)
    if whole is not None:
        reported["paper_relative_time"] = 1 + (0 if extra is None else extra["mean"]) / whole["mean"]
    return reported


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
