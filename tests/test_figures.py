"""Figures show the numbers of the records, say what they are of, and say what is missing."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from rst.experiments import sweep
from rst.experiments.config import InputError, gamma_ratio, schedule_of, total_steps
from rst.experiments.record import SUMMARY_KEYS
from rst.experiments.sweep import Cell, Job, Table, load_table
from rst.gate import Gate
from rst.report.figures import FIGURES, draw, write
from rst.report.results import paper_numbers

FILES = {
    # In the first family Δη changes from row to row, in the second only a does.
    "lines": """
        title: Two families
        draw: error_over_cost
        seeds: 2
        overrides: [dataset=digits, dataset.train_images=64, recipe.batch_size=32, recipe.perturbation_batch=32]
        columns: {Clean: [], Noisy: [dataset.label_noise=0.2]}
        blocks: {Narrow: [model=wrn10_1], Wide: [model=wrn10_2]}
        rows: {SGD: [scheme=sgd], SAM: [scheme=sam]}
        groups:
          constant:
            rows:
              p = <p>: {overrides: [scheme=rst, "schedule.p=<p>"], grid: {p: [0.8, 0.2]}}
          halves:
            rows:
              a = <a>: {overrides: [scheme=rst, schedule=piecewise, "schedule.a=<a>"], grid: {a: [0.3, 0.9]}}
        """,
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
    "paper": """
        title: Beside the paper
        draw: error_over_cost
        seeds: 1
        paper: table01
        columns: {Cifar10: [dataset=cifar10]}
        blocks: {ResNet18: [model=resnet18]}
        rows: {SGD: [scheme=sgd]}
        """,
}

Load = Callable[..., Table]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Tables of FILES, whose runs would be in the same folder."""
    folder = tmp_path_factory.mktemp("figures")
    for name, text in FILES.items():
        (folder / f"{name}.yaml").write_text(text)

    def load(name: str, *overrides: str) -> Table:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweep, "TABLES", folder)
            return load_table(name, [f"paths.runs={folder}/runs", *overrides])

    return load


@pytest.fixture(scope="module")
def lines(load: Load) -> Table:
    """Two networks on two data sets: SGD, SAM and two families of two rows, all runs done."""
    return finished(load("lines"))


@pytest.fixture(scope="module")
def drawn(lines: Table) -> Figure:
    return draw(lines)


def finished(table: Table, jobs: int | None = None) -> Table:
    """The table with records for its first jobs: all different in error, slower the sharper they are."""
    for i, job in enumerate(table.jobs[:jobs]):
        p = schedule_of(job.cfg).mean(total_steps(job.cfg))
        seconds = (60 if job.cfg.network == "wrn10_1" else 240) * (1 + p**2) + job.cfg.seed
        job.record.folder.mkdir(parents=True, exist_ok=True)
        job.record.finish(dict.fromkeys(SUMMARY_KEYS, 1) | {"test_error": 5 + 0.1 * i, "train_seconds": seconds})
    return table


def as_if(table: Table, draw: str) -> Table:
    return dataclasses.replace(table, draw=draw)


def without_runs(table: Table, folder: Path) -> Table:
    def moved(job: Job) -> Job:
        return Job(job.cfg, type(job.record)(folder / job.record.id))

    cells = [dataclasses.replace(cell, jobs=[moved(job) for job in cell.jobs]) for cell in table.cells]
    return dataclasses.replace(table, cells=cells)


def values(cell: Cell, key: str = "test_error") -> list[float]:
    return [job.record.summary[key] for job in cell.jobs]


def points(ax: Axes) -> dict[tuple[float, float], float]:
    """(x, y) of every marker of a line's panel, with its area."""
    found = {}
    for collection in ax.collections:
        if isinstance(collection, PathCollection):
            xy, areas = np.asarray(collection.get_offsets()).round(6).tolist(), collection.get_sizes()
            found |= {(x, y): float(area) for (x, y), area in zip(xy, areas, strict=True)}
    return found


def texts(figure: Figure) -> str:
    """All that is written in the panels and above them."""
    written = [text.get_text() for ax in figure.axes for text in ax.texts]
    written += [ax.get_title(loc) for ax in figure.axes for loc in ("left", "right")]
    return "\n".join([figure.get_suptitle(), *written])


def in_legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# --------------------------------------------------------------------------------------------------- error over cost


def test_every_family_network_and_data_set_has_a_panel(drawn: Figure) -> None:
    assert len(drawn.axes) == 2 * 2 * 2
    assert [ax.get_title("left") for ax in drawn.axes[:2]] == ["constant, Clean", "constant, Noisy"]
    assert [ax.get_ylabel() for ax in drawn.axes[:4:2]] == ["Narrow\ntest error [%]", "Wide\ntest error [%]"]


def test_a_line_goes_from_sgd_over_the_rows_to_sam_at_their_costs(lines: Table, drawn: Figure) -> None:
    ax = drawn.axes[0]
    cells = {cell.row: cell for cell in lines.cells if cell.block == "Narrow" and cell.column == "Clean"}
    order = [cells[row] for row in ("SGD", "p = 0.2", "p = 0.8", "SAM")]
    assert ax.lines[0].get_xdata() == pytest.approx([0, 0.2, 0.8, 1])
    assert ax.lines[0].get_ydata() == pytest.approx([mean(values(cell)) for cell in order])
    assert drawn.axes[2].get_xlabel() == "Δη [extra passes a step]"


def test_error_bars_are_one_standard_deviation(lines: Table, drawn: Figure) -> None:
    ax = drawn.axes[0]
    bars = [path for collection in ax.collections[1:] for path in collection.get_paths() if len(path.vertices) == 2]
    sgd = values(lines.cells[0])
    assert any(bar.vertices[:, 1] == pytest.approx([mean(sgd) - stdev(sgd), mean(sgd) + stdev(sgd)]) for bar in bars)


def test_a_family_of_one_cost_lies_over_its_parameter_with_sgd_and_sam_as_levels(lines: Table, drawn: Figure) -> None:
    ax = drawn.axes[4]
    assert ax.lines[0].get_xdata() == pytest.approx([0.3, 0.9])
    assert drawn.axes[6].get_xlabel() == "a, p in the first half [1]"
    levels = {line.get_ydata()[0] for line in ax.lines if list(line.get_xdata()) == [0, 1]}
    ends = [cell for cell in lines.cells if (cell.group, cell.block, cell.column) == ("", "Narrow", "Clean")]
    assert levels == {mean(values(cell)) for cell in ends}


def test_areas_of_markers_are_in_proportion_to_the_training_time(lines: Table, drawn: Figure) -> None:
    seconds = {round(mean(values(cell)), 6): mean(values(cell, "train_seconds")) for cell in lines.cells}
    ratios = [area / seconds[y] for ax in drawn.axes for (_, y), area in points(ax).items()]
    assert len(ratios) == 8 * 4
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_the_legend_tells_networks_ends_and_times(drawn: Figure) -> None:
    times = ["area: 60.5 s of training", "area: 8.01 min of training"]
    assert in_legend(drawn) == ["Narrow", "Wide", "SGD", "SAM", *times]


def diamonds(figure: Figure) -> list[float]:
    """The paper's numbers in the first panel."""
    shown = next(line for line in figure.axes[0].lines if line.get_marker() == "D").get_ydata()
    return [y for y in shown if not np.isnan(y)]


def test_the_papers_numbers_stand_beside_ours(load: Load) -> None:
    figure = draw(finished(load("paper")))
    numbers = paper_numbers("table01").query(
        "model == 'ResNet18' and dataset == 'Cifar10' and scheme == 'SGD' and metric == 'error_pct'"
    )
    assert diamonds(figure) == numbers["mean"].tolist()
    assert "paper" in in_legend(figure)


@pytest.mark.parametrize("other", [["scale=smoke", "dataset.source=auto"], ["dataset.source=digits"]])
def test_the_papers_numbers_never_stand_beside_runs_of_another_scale_or_of_other_images(
    load: Load, other: list[str]
) -> None:
    figure = draw(finished(load("paper", *other)))
    assert diamonds(figure) == []
    assert "paper" not in in_legend(figure)


def test_the_heading_says_scale_and_images(load: Load) -> None:
    assert draw(load("paper")).get_suptitle().startswith("Beside the paper\nscale paper, images: cifar10")
    assert "scale smoke, images: digits" in draw(load("paper", "scale=smoke")).get_suptitle()


# ------------------------------------------------------------------------------------------------ the other figures


def test_the_summary_shows_every_family_at_its_cost(lines: Table) -> None:
    figure = draw(as_if(lines, "summary"))
    assert len(figure.axes) == 4
    assert in_legend(figure) == ["constant", "halves, Δη = 0.5", "SGD", "SAM"]
    constant, halves, sgd, sam = (line.get_xdata() for line in figure.axes[0].lines[:4])
    assert [*constant, *halves, *sgd, *sam] == pytest.approx([0.8, 0.2, 0.5, 0.5, 0, 1])
    assert figure.axes[0].get_ylabel() == "test error [%]"
    assert figure.axes[0].get_xlabel() == "Δη [extra passes a step]"


def test_the_summary_of_a_table_without_families_tells_its_rows_apart(load: Load) -> None:
    assert in_legend(draw(finished(as_if(load("grid"), "summary"))))[:2] == ["p 0.2 c 1", "p 0.2 c 2"]


def test_measured_extra_time_lies_over_the_expected_beside_the_line_of_theory(lines: Table) -> None:
    schedules, times = draw(as_if(lines, "extra_time")).axes
    theory, *measured = times.lines
    assert (theory.get_xy1(), theory.get_slope()) == ((0, 0), 1)
    own = [line for line in measured if len(line.get_xdata()) == 6]
    assert len(own) == 4  # networks times data sets
    for line in own:
        assert line.get_ydata() == pytest.approx(line.get_xdata() ** 2, abs=1e-6)  # as the times were made
    assert times.get_xlabel() == "Δη [extra passes a step]"
    assert times.get_ylabel() == "extra training time [that of SAM]"
    assert [line.get_label() for line in schedules.lines] == ["0.8", "0.2", "0.3", "0.9"]
    assert schedules.get_title("left") == "A  constant, p = ...; halves, a = ..."


def test_schedules_are_drawn_as_p_over_the_share_of_the_training(lines: Table) -> None:
    figure = draw(as_if(lines, "schedules"))
    constant, halves = figure.axes
    assert [line.get_label() for line in constant.lines] == ["0.8", "0.2"]
    cell = next(cell for cell in lines.cells if cell.row == "a = 0.3")
    steps, line = total_steps(cell.cfg), halves.lines[0]
    assert steps < 500
    assert line.get_xdata() == pytest.approx([t / steps for t in range(steps + 1)])
    assert line.get_ydata()[:-1] == pytest.approx([schedule_of(cell.cfg)(t, steps) for t in range(steps)])
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in halves.lines}) == 2


def test_dots_of_the_gate_are_the_steps_that_seed_0_takes(lines: Table) -> None:
    ax, *others = draw(as_if(lines, "gates")).axes
    assert len(others) == 3
    cell = next(cell for cell in lines.cells if cell.row == "p = 0.8")
    steps = total_steps(cell.cfg)
    gate, t = Gate(schedule_of(cell.cfg), steps, seed=0), (ax.lines[1].get_xdata() * steps).round().astype(int)
    assert len(t) == min(steps, 100)
    assert ax.lines[1].get_ydata().tolist() == gate.steps.numpy()[t].tolist()


def test_the_heat_map_shows_mean_and_spread_of_each_cell_over_p_and_its_regularisation(load: Load) -> None:
    table = finished(load("grid"))
    figure = draw(table)
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.2", "0.4"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0.2", "0.4", "0.8"]
    shown = ax.collections[0].get_array()
    for cell in table.cells:
        p = cell.cfg.schedule.p
        row, column = [0.2, 0.4, 0.8].index(p * gamma_ratio(cell.cfg)), [0.2, 0.4].index(p)
        assert shown[row, column] == pytest.approx(mean(values(cell)))
        assert f"{mean(values(cell)):.2f}\n± {stdev(values(cell)):.2f}" in texts(figure)
    assert "[%]" in figure.axes[1].get_ylabel()


def test_a_training_that_failed_leaves_the_other_cells_of_the_heat_map_their_colours(
    load: Load, tmp_path: Path
) -> None:
    table = finished(without_runs(load("grid"), tmp_path))
    for job in table.cells[0].jobs:
        job.record.finish(job.record.summary | {"test_error": 90.0})
    figure = draw(table)
    assert figure.axes[0].collections[0].get_clim()[1] < 10
    assert "90.00" in texts(figure)


# --------------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize("kind", ["error_over_cost", "summary", "extra_time", "heatmap"])
def test_a_figure_without_runs_says_how_to_get_them(load: Load, kind: str, tmp_path: Path) -> None:
    assert "no runs yet:\nmake grid SCALE=paper" in texts(draw(without_runs(as_if(load("grid"), kind), tmp_path)))


@pytest.mark.parametrize("kind", ["error_over_cost", "summary", "heatmap"])
def test_a_figure_that_lacks_runs_says_how_many_it_has(load: Load, kind: str, tmp_path: Path) -> None:
    table = finished(without_runs(as_if(load("grid"), kind), tmp_path), jobs=3)
    assert "n = 0/2 to 2/2" in texts(draw(table))
    if kind == "heatmap":
        assert "\nn = 0/2\n" in texts(draw(table))
        assert "5.20\nn = 1/2" in texts(draw(table))


def test_one_seed_has_no_error_bars(load: Load, tmp_path: Path) -> None:
    ax = draw(finished(without_runs(as_if(load("grid"), "error_over_cost"), tmp_path), jobs=1)).axes[0]
    bars = [c for c in ax.collections if not isinstance(c, PathCollection)]
    assert all(np.isnan(path.vertices).any() for bar in bars for path in bar.get_paths())


def test_an_unknown_figure_is_answered_with_those_that_exist(lines: Table) -> None:
    with pytest.raises(InputError, match=r"lines.yaml, draw: pie is no figure: write one of error_over_cost,"):
        draw(as_if(lines, "pie"))


# --------------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("kind", FIGURES)
def test_equal_results_are_equal_files(load: Load, kind: str) -> None:
    table = as_if(finished(load("grid")), kind)
    first = [file.read_bytes() for file in write(table)]
    files = write(table)
    assert [file.read_bytes() for file in files] == first
    folder = Path(table.cells[0].cfg.paths.runs).parent / "figures"
    assert files == [folder / f"{table.name}.png", folder / f"{table.name}.svg"]
    assert first[0].startswith(b"\x89PNG")
    assert b"<svg" in first[1]
