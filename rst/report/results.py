"""What came out of a table's runs, cell by cell, with the paper's numbers beside it; all that is shown starts here."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from rst.experiments.config import CONFIGS, InputError, gamma_ratio, schedule_of, total_steps, variant
from rst.experiments.record import SUMMARY_KEYS
from rst.experiments.sweep import Cell, Job, Table
from rst.report.formulas import closed_form

PAPER = CONFIGS.parent / "results" / "paper"
METRICS = {"test_error": ["error_pct", "top1_error_pct"], "top5_error": ["top5_error_pct"]}
"""What a table may show, and what it is called in the files of the paper's numbers."""


def stands_in(cell: Cell) -> bool:
    """Whether digits take the place of the data set's own images."""
    return cell.cfg.dataset.source == "digits" != cell.cfg.dataset.name


def folder_of(table: Table) -> Path:
    """Where the table's files are written: beside its records, those of each scale apart from the others."""
    cfg = table.cells[0].cfg
    scale = cfg.scale + "-digits" * any(map(stands_in, table.cells))
    return Path(cfg.paths.runs).parent / ("" if scale == "paper" else scale)


def runs(jobs: Sequence[Job]) -> pd.DataFrame:
    """One line a finished run: its id, and what came out."""
    lines = [{"id": job.record.id} | job.record.summary for job in jobs if job.record.done]
    return pd.DataFrame(lines, columns=["id", *SUMMARY_KEYS, "top5_error"])


def results(table: Table) -> pd.DataFrame:
    """One line a cell and metric, in the order of the table file.

    ``group block row column ours metric variant`` say which; ``p c gamma_rst extra_propagations_expected`` what was
    asked (mean of p(t), γ/ρ, their product, Δη), ``extra_propagations_closed_form`` Δη by Table 2; ``n wanted mean
    std`` what came out over the seeds (standard deviation with n - 1), ``extra_propagations_realised train_seconds
    train_seconds_std`` its cost; ``paper_mean paper_std paper_relative_time`` the paper's; ``difference`` ours less the
    paper's, ``standard_error`` of it, and ``within`` whether it lies within two of them; ``relative_time`` the time
    over that of SGD in the same block and column, ``relative_extra_time`` the extra time over that of SAM. What is not
    known is empty.
    """
    unknown = set(table.metrics) - set(METRICS)
    if unknown:
        raise InputError(f"{table.name}.yaml, metrics: there is no {min(unknown)}: choose of {', '.join(METRICS)}.")
    numbers = paper_numbers(table.paper) if table.paper else None
    lines = []
    for cell in table.cells:
        asked, own = _asked(cell), runs(cell.jobs)
        for metric in table.metrics or [""]:
            lines.append(asked | {"metric": metric} | _measured(own, metric) | _reported(cell, metric, numbers))
    frame = pd.DataFrame(lines)
    _compare_errors(frame)
    _compare_times(frame)
    return frame


def _asked(cell: Cell) -> dict[str, Any]:
    cfg = cell.cfg
    p = schedule_of(cfg).mean(total_steps(cfg))
    passes = variant(cfg).extra_passes
    return {
        "group": cell.group,
        "block": cell.block,
        "row": cell.row,
        "column": cell.column,
        "ours": cell.ours,
        "variant": cfg.variant.name,
        "p": p,
        "c": gamma_ratio(cfg) if p else math.nan,
        "gamma_rst": p * gamma_ratio(cfg) if p else 0.0,
        "extra_propagations_expected": p * passes,
        "extra_propagations_closed_form": closed_form(cfg.schedule) * passes,
        "wanted": len(cell.jobs),
    }


def _measured(own: pd.DataFrame, metric: str) -> dict[str, Any]:
    return {
        "n": own[metric or "id"].count(),
        "mean": own[metric].mean() if metric else math.nan,
        "std": own[metric].std() if metric else math.nan,
        "extra_propagations_realised": own["extra_propagations_realised"].mean(),
        "train_seconds": own["train_seconds"].mean(),
        "train_seconds_std": own["train_seconds"].std(),
    }


def _compare_errors(frame: pd.DataFrame) -> None:
    paper_seeds = frame["column"].map({"ImageNet": 3}).fillna(5)  # Sections 3.1 and 4
    frame["difference"] = frame["mean"] - frame["paper_mean"]
    frame["standard_error"] = (frame["std"] ** 2 / frame["n"] + frame["paper_std"] ** 2 / paper_seeds) ** 0.5
    known = frame["standard_error"].notna() & frame["difference"].notna()
    frame["within"] = (frame["difference"].abs() <= 2 * frame["standard_error"]).where(known)


def _compare_times(frame: pd.DataFrame) -> None:
    """Times against those of SGD and of SAM in the same block and column, of the same group or of no group."""
    frame["relative_time"] = frame["relative_extra_time"] = math.nan
    for i, line in frame.iterrows():
        same = frame[(frame["block"] == line["block"]) & (frame["column"] == line["column"])]
        same = same[same["group"].isin(["", line["group"]])].sort_values("group", ascending=False, kind="stable")
        plain, sharp = same[same["p"] == 0], same[(same["p"] == 1) & (same["c"] == 1) & (same["variant"] == "sam")]
        if len(plain):
            base = plain["train_seconds"].iloc[0]
            frame.loc[i, "relative_time"] = line["train_seconds"] / base
            if len(sharp):
                extra = sharp["train_seconds"].iloc[0] - base
                frame.loc[i, "relative_extra_time"] = (line["train_seconds"] - base) / extra


# ------------------------------------------------------------------------------------------------ the paper's numbers


@cache
def paper_numbers(name: str) -> pd.DataFrame:
    """``results/paper/<name>.csv``: one line a number, texts but for ``mean`` and ``std``; lost numbers are empty."""
    file = PAPER / f"{name}.csv"
    if not file.exists():
        raise InputError(f"paper: {name}: there is no {file.name} among the paper's numbers in {PAPER.name}/.")
    numbers = pd.read_csv(file, dtype=str, keep_default_na=False)
    return numbers.assign(mean=pd.to_numeric(numbers["mean"]), std=pd.to_numeric(numbers["std"]))


def _reported(cell: Cell, metric: str, numbers: pd.DataFrame | None) -> dict[str, float]:
    """The paper's error, and its training time over that of the scheme to which it adds the extra minutes."""
    reported = dict.fromkeys(("paper_mean", "paper_std", "paper_relative_time"), math.nan)
    if numbers is None or cell.ours:
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


def _number(numbers: pd.DataFrame, cell: Cell, metrics: list[str], picks: dict[str, str]) -> pd.Series | None:
    """The line of the cell's network and data set that has these values.

    `` | `` stands between two that will do, and a ``source_note`` is given by how it begins.
    """
    datasets = [cell.column, "Cifar10&100"]
    lines = numbers[
        (numbers["model"] == cell.block) & numbers["dataset"].isin(datasets) & numbers["metric"].isin(metrics)
    ]
    place = f"{cell.table}.yaml, {cell.row}, paper"
    for key, value in picks.items():
        if key not in numbers:
            raise InputError(f"{place}: there is no column {key}: choose of {', '.join(numbers)}.")
        begins = key == "source_note"
        lines = lines[lines[key].str.startswith(value) if begins else lines[key].isin(value.split(" | "))]
    if len(lines) > 1:
        raise InputError(f"{place}: {len(lines)} numbers fit {cell.block} {cell.column}: pick one by another column.")
    return lines.iloc[0] if len(lines) else None
