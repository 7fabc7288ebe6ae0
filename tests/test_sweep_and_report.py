"""From a table file to its runs, and from their records to the table and its figure."""

import dataclasses
import multiprocessing
import statistics
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from rst.experiments.config import InputError
from rst.experiments.sweep import Table, load_table
from rst.report import figures, tables
from rst.training import run_table

TINY = ["recipe.epochs=1", "dataset.train_images=64", "dataset.test_images=50", "recipe.batch_size=32"]
TINY += ["recipe.perturbation_batch=32", "evaluate_every=1"]


def demo(folder: Path, *overrides: str) -> Table:
    return load_table("demo", [*TINY, f"paths.runs={folder / 'runs'}", *overrides])


def of_seeds(table: Table, seeds: list[int]) -> Table:
    return dataclasses.replace(table, seeds=seeds, cells=[cell for cell in table.cells if cell.cfg.seed in seeds])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Four rows of two seeds, trained by two workers."""
    table = of_seeds(demo(tmp_path_factory.mktemp("table")), [0, 1])
    assert run_table(table, workers=2) == []
    return table


def test_a_table_is_its_rows_times_its_seeds(tmp_path: Path) -> None:
    table = demo(tmp_path)
    assert [(cell.row, cell.cfg.seed) for cell in table.cells] == [
        (row, seed) for row in ("SGD", "SAM", "RST[50%]", "G-RST[50%]") for seed in range(5)
    ]
    assert len({cell.record.id for cell in table.cells}) == 20


def test_ids_are_still_those_of_the_records_that_are_kept() -> None:
    kept = pd.read_csv(Path(__file__).parents[1] / "results" / "records.csv")["id"]
    assert {cell.record.id for cell in load_table("demo").cells} <= set(kept)


def test_an_unknown_table_is_answered_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"no table tabel: choose one of .*demo"):
        load_table("tabel")


def test_every_run_of_a_table_gets_trained(trained: Table) -> None:
    assert all(cell.record.done for cell in trained.cells)
    passes = {cell.row: cell.record.summary["propagations"] for cell in trained.cells}
    assert passes["SGD"] == 2
    assert passes["SAM"] == 4


def test_a_run_that_is_done_is_not_trained_again(trained: Table) -> None:
    summaries = [cell.record.folder / "summary.json" for cell in trained.cells]
    before = [file.stat().st_mtime_ns for file in summaries]
    assert run_table(trained, workers=1) == []
    assert [file.stat().st_mtime_ns for file in summaries] == before


def test_a_run_that_fails_is_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    table = of_seeds(demo(tmp_path), [0])
    table.cells[1].cfg.dataset.train_images = 5000  # more than there are; only the worker can see that
    failures = run_table(table, workers=1)
    assert len(failures) == 1
    assert failures[0].startswith("SAM, seed 0: dataset.train_images=5000")
    assert [cell.record.done for cell in table.cells] == [True, False, True, True]


def test_a_worker_that_is_killed_costs_the_run_it_was_at_and_no_other(tmp_path: Path) -> None:
    table = of_seeds(demo(tmp_path, "recipe.epochs=40"), [0])
    first = table.cells[0].record

    def kill_the_worker() -> None:
        while not first.metrics:
            time.sleep(0.01)
        for worker in multiprocessing.active_children():
            worker.kill()

    killer = threading.Thread(target=kill_the_worker)
    killer.start()
    failures = run_table(table, workers=1)
    killer.join()
    assert len(failures) == 1
    assert failures[0].startswith("SGD, seed 0: its worker ended")
    assert [cell.record.done for cell in table.cells] == [False, True, True, True]


def test_the_table_gives_mean_and_standard_deviation_over_seeds(trained: Table) -> None:
    means = tables.over_seeds(trained)
    assert list(means.index) == trained.rows
    for row in trained.rows:
        errors = [cell.record.summary["test_error"] for cell in trained.cells if cell.row == row]
        assert means.loc[row, "n"] == 2
        assert means.loc[row, "test_error_mean"] == pytest.approx(statistics.mean(errors))
        assert means.loc[row, "test_error_std"] == pytest.approx(statistics.stdev(errors))
    assert means.loc["SGD", "relative_time"] == 1


def test_a_row_that_lacks_runs_says_how_many_it_has(trained: Table) -> None:
    lacking = dataclasses.replace(
        trained, cells=[cell for cell in trained.cells if (cell.row, cell.cfg.seed) != ("SAM", 1) and cell.row != "SGD"]
    )
    errors = tables.readable(lacking).set_index("Scheme")["Test error [%]"]
    assert errors["SGD"] == "n = 0/2"
    assert errors["SAM"].endswith("(n = 1/2)")
    assert "±" not in errors["SAM"]
    assert errors["RST[50%]"].endswith("(n = 2)")


def test_the_caption_says_what_the_numbers_are_of(trained: Table) -> None:
    caption = tables.caption(trained)
    for fact in ("`wrn10_1`", "`digits`", "64 for training, 20% of their labels wrong", "1 epochs", "`paper`"):
        assert fact in caption


def test_files_of_the_table_hold_its_numbers(trained: Table, tmp_path: Path) -> None:
    markdown, means, records = tables.write(trained, tmp_path)
    assert markdown.read_text().startswith(f"# {trained.title}")
    assert list(pd.read_csv(means, index_col=0).index) == trained.rows
    runs = pd.read_csv(records).set_index("id")
    for cell in trained.cells:
        assert runs.loc[cell.record.id, "test_error"] == cell.record.summary["test_error"]
        assert runs.loc[cell.record.id, "recipe.epochs"] == 1


def test_the_records_keep_the_runs_of_other_tables(trained: Table, tmp_path: Path) -> None:
    for seed in (0, 1, 1):
        *_, records = tables.write(of_seeds(trained, [seed]), tmp_path)
    assert sorted(pd.read_csv(records)["id"]) == sorted(cell.record.id for cell in trained.cells)


def test_the_figure_shows_every_row_at_its_cost(trained: Table) -> None:
    axes = figures.error_over_cost(trained).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"{row} (n = 2)" for row in trained.rows]
    assert "Δη" in axes.get_xlabel()
    assert "[%]" in axes.get_ylabel()


def test_the_figure_is_written_as_picture_and_as_drawing(trained: Table, tmp_path: Path) -> None:
    picture, drawing = figures.write(trained, tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in drawing.read_text()
