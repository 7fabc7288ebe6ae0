"""Table files of a test, and records of runs that were never trained."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rst.experiments.report.records import CONDITIONS
from rst.experiments.runs.record import SUMMARY_KEYS, Record
from rst.experiments.tables import claim_file, table_file
from rst.experiments.tables.expansion import Cell, PlannedRun, Table, load_table

SMALL = "[dataset=digits, model=wrn10_1, wandb.mode=disabled, device=cpu]"
"""The overrides of tables whose runs are on digits, by the smallest network."""

ALONE = f"""
title: Without the paper
seeds: 2
overrides: {SMALL}
rows: {{SGD: [scheme=sgd], SAM: [scheme=sam], "RST[50%]": [scheme=rst]}}
"""
"""A table that has none of the paper's numbers beside its own."""

CPU = dict.fromkeys(CONDITIONS, False) | {"device": "cpu", "devices": 1, "threads": 1, "autocast": None, "alone": True}


@contextmanager
def table_files(folder: Path, files: Mapping[str, str]) -> Iterator[None]:
    """A context in which these files, texts by name, take the place of the project's table files."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_file, "TABLES", folder)
        yield


@contextmanager
def claims(folder: Path, text: str) -> Iterator[None]:
    """A context in which this text takes the place of the project's claims."""
    (folder / "claims.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim_file, "FILE", folder / "claims.yaml")
        yield


def standing_in(files: Mapping[str, str], text_of_claims: str | None = None) -> Callable[..., Iterator[None]]:
    """The fixture by which, for all tests of a module, these table files and claims replace the project's."""

    @pytest.fixture(scope="module", autouse=True)
    def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        folder = tmp_path_factory.mktemp("configs")
        (folder / "tables").mkdir()
        own_claims = nullcontext() if text_of_claims is None else claims(folder, text_of_claims)
        with table_files(folder / "tables", files), own_claims:
            yield

    return stand_in


Load = Callable[..., Table]


def loading() -> Callable[[Path], Load]:
    """The fixture by which the tests of a module get a table by its name and overrides.

    A table is composed once. Its records are in a folder of the test.
    """
    composed = functools.cache(load_table)

    @pytest.fixture
    def load(tmp_path: Path) -> Load:
        return lambda name, *overrides: moved(composed(name, overrides), tmp_path / "runs")

    return load


def moved(table: Table, runs: Path) -> Table:
    """The table, with its records in the folder ``runs``."""
    cells = []
    for cell in table.cells:
        own = [PlannedRun(run.spec, Record(runs / run.record.id)) for run in cell.runs]
        cells.append(replace(cell, spec=cell.spec.changed(paths={"runs": str(runs)}), runs=own))
    return replace(table, cells=cells)


def finish(run: PlannedRun, on: Mapping[str, Any] = CPU, **came_out: float | None) -> None:
    """Write the record of a run that has ended with these values in its summary; all other values are 1.

    ``on`` is what the run ran on.
    """
    with run.record.training(run.spec):
        run.record.append_start(dict(on))
        run.record.finish(dict.fromkeys(SUMMARY_KEYS, 1) | {"seed": run.spec.seed} | came_out)


def finished(table: Table, runs: int | None = None) -> Table:
    """The table, with records of its first ``runs`` runs: all errors differ, and sharper runs take longer.

    A run takes 300 (1 + p) passes; one of wrn10_1 60 (1 + p²) + seed seconds, of any other network 240 (1 + p²) + seed.
    """
    for i, run in enumerate(table.runs[:runs]):
        seconds = (60 if run.spec.network == "wrn10_1" else 240) * (1 + run.spec.mean_p**2) + run.spec.seed
        finish(run, test_error=5 + 0.1 * i, train_seconds=seconds, propagations=300 * (1 + run.spec.mean_p))
    return table


def values(cell: Cell, key: str = "test_error") -> list[float]:
    """A value of the summaries of the cell's runs, all of which are done."""
    return [run.record.summary[key] for run in cell.runs]
