"""Figures of a table that is a grid: the heat map, runs that are missing, and the files."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from made_up_runs import CPU, finish, finished, moved, table_files, values
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from rst.experiments.report.figures import FIGURES, draw, write
from rst.experiments.tables.expansion import Table, load_table

FILES = {
    "grid": """
        title: A grid
        draw: heatmap
        seeds: 2
        overrides: [dataset=digits, dataset.train_images=64, recipe.batch_size=32, recipe.perturbation_batch=32]
        rows:
          p <p> c <c>:
            overrides: [scheme=grst, "schedule.p=<p>", "scheme.gamma_ratio=<c>"]
            grid: {p: [0.2, 0.4], c: [1, 2]}
        """,
}

Load = Callable[[], Table]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The table of FILES."""
    folder = tmp_path_factory.mktemp("grid")

    def load() -> Table:
        with table_files(folder, FILES):
            return load_table("grid", [f"paths.runs={folder}/runs"])

    return load


def as_if(table: Table, draw: str) -> Table:
    return replace(table, draw=draw)


def texts(figure: Figure) -> str:
    """All texts in the panels and above them."""
    written = [text.get_text() for ax in figure.axes for text in ax.texts]
    written += [ax.get_title(loc) for ax in figure.axes for loc in ("left", "right")]
    return "\n".join([figure.get_suptitle(), *written])


def test_the_heat_map_shows_mean_and_spread_of_each_cell_over_p_and_its_regularisation(load: Load) -> None:
    table = finished(load())
    figure = draw(table)
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.2", "0.4"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0.2", "0.4", "0.8"]
    shown = ax.collections[0].get_array()
    for cell in table.cells:
        p = cell.spec.schedule.options["p"]
        row, column = [0.2, 0.4, 0.8].index(p * cell.spec.gamma_ratio), [0.2, 0.4].index(p)
        assert shown[row, column] == pytest.approx(mean(values(cell)))
        half = 12.7062 * stdev(values(cell)) / 2**0.5  # t for 95 % and one degree of freedom
        assert f"{mean(values(cell)):.2f}\n± {half:.2f}" in texts(figure)
    assert "[%]" in figure.axes[1].get_ylabel()


def test_the_best_cell_of_the_heat_map_is_outlined(load: Load) -> None:
    table = finished(load())
    [outline] = [patch for patch in draw(table).axes[0].patches if not patch.get_fill()]
    best = min(table.cells, key=lambda cell: mean(values(cell)))
    p = best.spec.schedule.options["p"]
    assert outline.get_xy() == ([0.2, 0.4].index(p), [0.2, 0.4, 0.8].index(p * best.spec.gamma_ratio))


def test_rows_outside_the_grid_are_marks_on_the_colour_bar(load: Load) -> None:
    table = finished(load())
    first, *rest = table.cells
    table = replace(table, cells=[first, *(replace(cell, group="grid") for cell in rest)])
    _, bar = draw(table).axes
    assert [text.get_text() for text in bar.texts] == [f"{first.row} {mean(values(first)):.2f}"]


def test_a_training_that_failed_does_not_take_the_colours_of_the_other_cells_of_the_heat_map(
    load: Load, tmp_path: Path
) -> None:
    table = finished(moved(load(), tmp_path))
    for run in table.cells[0].runs:
        run.record.finish(run.record.summary | {"test_error": 90.0})
    figure = draw(table)
    least, most = figure.axes[0].collections[0].get_clim()
    assert most == pytest.approx(8 * least)
    assert "90.00" in texts(figure)


# --------------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize("kind", ["error_over_cost", "summary", "extra_time", "heatmap"])
def test_a_figure_without_runs_says_how_to_get_them(load: Load, kind: str, tmp_path: Path) -> None:
    assert "no runs yet:\npython scripts/sweep.py grid\n--report" in texts(draw(moved(as_if(load(), kind), tmp_path)))


def test_a_figure_of_times_says_how_to_get_them_where_no_run_was_alone(load: Load, tmp_path: Path) -> None:
    table = moved(as_if(load(), "extra_time"), tmp_path)
    for run in table.runs:
        finish(run, on=CPU | {"alone": False}, train_seconds=1 + run.spec.mean_p)
    said = "no run was alone on its cores:\nscripts/runs.py remove, then\npython scripts/sweep.py grid\n--report"
    assert said in texts(draw(table))


@pytest.mark.parametrize("kind", ["error_over_cost", "summary", "heatmap"])
def test_a_figure_that_lacks_runs_says_how_many_it_has(load: Load, kind: str, tmp_path: Path) -> None:
    table = finished(moved(as_if(load(), kind), tmp_path), runs=3)
    assert "n = 0 to 2/2" in texts(draw(table))
    if kind == "heatmap":
        assert "\nn = 0/2\n" in texts(draw(table))
        assert "5.20\nn = 1/2" in texts(draw(table))


def test_one_seed_has_no_error_bars(load: Load, tmp_path: Path) -> None:
    ax = draw(finished(moved(as_if(load(), "error_over_cost"), tmp_path), runs=1)).axes[0]
    bars = [c for c in ax.collections if not isinstance(c, PathCollection)]
    assert all(np.isnan(path.vertices).any() for bar in bars for path in bar.get_paths())


# --------------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("kind", FIGURES)
def test_equal_results_are_equal_files(load: Load, kind: str) -> None:
    table = as_if(finished(load()), kind)
    first = [file.read_bytes() for file in write(table)]
    files = write(table)
    assert [file.read_bytes() for file in files] == first
    folder = Path(table.cells[0].spec.paths.runs).parent / "figures"
    assert files == [folder / f"{table.name}.{kind}" for kind in ("png", "svg", "pdf")]
    assert first[0].startswith(b"\x89PNG")
    assert b"<svg" in first[1]
    assert first[2].startswith(b"%PDF")


def test_the_ids_in_an_svg_count_and_each_reference_has_its_id(load: Load) -> None:
    svg = write(as_if(finished(load()), "heatmap"))[1].read_text()
    ids = re.findall(r'\bid="([^"]+)"', svg)
    references = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
    assert len(ids) == len(set(ids))
    assert {first or second for first, second in references} <= set(ids)
    counted = sorted(int(match[1]) for name in ids if (match := re.fullmatch(r"(?:m|p|image)(\d+)", name)))
    assert counted == list(range(1, len(counted) + 1)) != []
