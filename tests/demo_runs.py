"""The four rows of the table ``demo``, SGD, SAM, RST and G-RST, made so small that a run takes a fifth of a second."""

from pathlib import Path
from typing import Any

from rst.experiments.runs.record import Record
from rst.experiments.tables.expansion import PlannedRun, Table, load_table

TINY = ["recipe.epochs=1", "dataset.train_images=64", "dataset.test_images=50", "recipe.batch_size=32"]
TINY += ["recipe.perturbation_batch=32", "device=cpu"]


def table_of(folder: Path, *overrides: str, seeds: int = 1) -> Table:
    """The table, with records in ``folder / "runs"``; a run has one epoch of 2 steps unless ``overrides`` say more."""
    return load_table("demo", [*TINY, f"paths.runs={folder / 'runs'}", f"max_seeds={seeds}", *overrides])


def demo(folder: Path, *overrides: str, seeds: int = 1) -> list[PlannedRun]:
    """The runs of `table_of`."""
    return table_of(folder, *overrides, seeds=seeds).runs


def statuses(runs: list[PlannedRun]) -> list[str]:
    """What the records of the runs say of their status."""
    return [planned.record.status for planned in runs]


def without_times(record: Record) -> list[dict[str, Any]]:
    """The metrics of every epoch, without the measured seconds."""
    return [{key: value for key, value in epoch.items() if key != "train_seconds"} for epoch in record.metrics]
