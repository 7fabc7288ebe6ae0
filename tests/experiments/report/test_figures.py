"""Figures show the numbers of the records, and say what they are of."""

from collections.abc import Callable
from dataclasses import replace
from statistics import mean, stdev

import numpy as np
import pytest
from made_up_runs import finished, table_files, values
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from rst.experiments.errors import InputError
from rst.experiments.report.figures import draw
from rst.experiments.report.results import paper_numbers
from rst.experiments.tables.expansion import Table, load_table
from rst.gate import Gate

FILES = {
    # The rows of the first family differ in Δη, those of the second only in a.
    "lines": """
        title: Two families
        draw: error_over_cost
        seeds: 2
        overrides: [dataset=digits, dataset.train_images=64, recipe.batch_size=32, recipe.perturbation_batch=32]
        datasets: {Clean: [], Noisy: [dataset.label_noise=0.2]}
        networks: {Narrow: [model=wrn10_1], Wide: [model=wrn10_2]}
        rows: {SGD: [scheme=sgd], SAM: [scheme=sam]}
        groups:
          constant:
            rows:
              p = <p>: {overrides: [scheme=rst, "schedule.p=<p>"], grid: {p: [0.8, 0.2]}}
          halves:
            rows:
              a = <a>: {overrides: [scheme=rst, schedule=piecewise, "schedule.a=<a>"], grid: {a: [0.3, 0.9]}}
        """,
    "paper": """
        title: Beside the paper
        draw: error_over_cost
        seeds: 1
        paper: table01
        datasets: {Cifar10: [dataset=cifar10]}
        networks: {ResNet18: [model=resnet18]}
        rows: {SGD: [scheme=sgd]}
        """,
}

Load = Callable[..., Table]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A table of FILES; all of them have their records in one folder."""
    folder = tmp_path_factory.mktemp("figures")

    def load(name: str, *overrides: str) -> Table:
        with table_files(folder, FILES):
            return load_table(name, [f"paths.runs={folder}/runs", *overrides])

    return load


@pytest.fixture(scope="module")
def lines(load: Load) -> Table:
    """Two networks on two data sets with SGD, SAM and two families of two rows; all runs are done."""
    return finished(load("lines"))


@pytest.fixture(scope="module")
def drawn(lines: Table) -> Figure:
    return draw(lines)


def as_if(table: Table, draw: str) -> Table:
    return replace(table, draw=draw)


def points(ax: Axes) -> dict[tuple[float, float], float]:
    """The area of every marker of a panel, by its x and y."""
    found = {}
    for collection in ax.collections:
        if isinstance(collection, PathCollection):
            xy, areas = np.asarray(collection.get_offsets()).round(6).tolist(), collection.get_sizes()
            found |= {(x, y): float(area) for (x, y), area in zip(xy, areas, strict=True)}
    return found


def in_legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# --------------------------------------------------------------------------------------------------- error over cost


def test_every_family_network_and_data_set_has_a_panel(drawn: Figure) -> None:
    assert len(drawn.axes) == 2 * 2 * 2
    assert [ax.get_title("left") for ax in drawn.axes[:2]] == ["constant, Clean", "constant, Noisy"]
    assert [ax.get_ylabel() for ax in drawn.axes[:4:2]] == ["Narrow\ntest error [%]", "Wide\ntest error [%]"]


def test_a_line_goes_from_sgd_through_the_rows_of_a_family_to_sam(lines: Table, drawn: Figure) -> None:
    ax = drawn.axes[0]
    cells = {cell.row: cell for cell in lines.cells if cell.network == "Narrow" and cell.dataset == "Clean"}
    order = [cells[row] for row in ("SGD", "p = 0.2", "p = 0.8", "SAM")]
    assert ax.lines[0].get_xdata() == pytest.approx([0, 0.2, 0.8, 1])
    assert ax.lines[0].get_ydata() == pytest.approx([mean(values(cell)) for cell in order])
    assert drawn.axes[2].get_xlabel() == "Δη [extra passes a step]"


def test_error_bars_are_one_standard_deviation(lines: Table, drawn: Figure) -> None:
    ax = drawn.axes[0]
    bars = [path for collection in ax.collections[1:] for path in collection.get_paths() if len(path.vertices) == 2]
    sgd = values(lines.cells[0])
    assert any(bar.vertices[:, 1] == pytest.approx([mean(sgd) - stdev(sgd), mean(sgd) + stdev(sgd)]) for bar in bars)


def test_a_family_of_one_cost_is_drawn_over_its_parameter_between_levels(lines: Table, drawn: Figure) -> None:
    ax = drawn.axes[4]
    assert ax.lines[0].get_xdata() == pytest.approx([0.3, 0.9])
    assert drawn.axes[6].get_xlabel() == "a, p in the first half [1]"
    levels = {line.get_ydata()[0] for line in ax.lines if list(line.get_xdata()) == [0, 1]}
    ends = [cell for cell in lines.cells if (cell.group, cell.network, cell.dataset) == ("", "Narrow", "Clean")]
    assert levels == {mean(values(cell)) for cell in ends}


def test_areas_of_markers_are_proportional_to_the_training_time(lines: Table, drawn: Figure) -> None:
    seconds = {round(mean(values(cell)), 6): mean(values(cell, "train_seconds")) for cell in lines.cells}
    ratios = [area / seconds[y] for ax in drawn.axes for (_, y), area in points(ax).items()]
    assert len(ratios) == 8 * 4
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_the_legend_names_networks_ends_and_times(drawn: Figure) -> None:
    times = ["area: 60.5 s of training", "area: 8.01 min of training"]
    assert in_legend(drawn) == ["Narrow", "Wide", "SGD", "SAM", *times]


def diamonds(figure: Figure) -> list[float]:
    """The paper's numbers that the first panel shows."""
    shown = next(line for line in figure.axes[0].lines if line.get_marker() == "D").get_ydata()
    return [y for y in shown if not np.isnan(y)]


def test_the_papers_numbers_are_drawn_beside_ours(load: Load) -> None:
    figure = draw(finished(load("paper")))
    numbers = paper_numbers("table01").query(
        "model == 'ResNet18' and dataset == 'Cifar10' and scheme == 'SGD' and metric == 'error_pct'"
    )
    assert diamonds(figure) == numbers["mean"].tolist()
    assert "paper" in in_legend(figure)


@pytest.mark.parametrize("other", [["scale=smoke", "dataset.source=auto"], ["dataset.source=digits"]])
def test_the_papers_numbers_are_never_drawn_beside_runs_of_another_scale_or_of_other_images(
    load: Load, other: list[str]
) -> None:
    figure = draw(finished(load("paper", *other)))
    assert diamonds(figure) == []
    assert "paper" not in in_legend(figure)


def test_the_heading_names_scale_and_images(load: Load) -> None:
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


def test_measured_extra_time_is_drawn_over_the_expected_with_the_line_of_theory(lines: Table) -> None:
    schedules, times = draw(as_if(lines, "extra_time")).axes
    theory, *measured = times.lines
    assert (theory.get_xy1(), theory.get_slope()) == ((0, 0), 1)
    own = [line for line in measured if len(line.get_xdata()) == 6]
    assert len(own) == 4  # two networks on two data sets
    for line in own:
        assert line.get_ydata() == pytest.approx(line.get_xdata() ** 2, abs=1e-6)  # as made_up_runs has it
    assert times.get_xlabel() == "Δη [extra passes a step]"
    assert times.get_ylabel() == "extra training time [that of SAM]"
    assert [line.get_label() for line in schedules.lines] == ["0.8", "0.2", "0.3", "0.9"]
    assert schedules.get_title("left") == "A  constant, p = ...; halves, a = ..."


def test_schedules_are_drawn_over_the_share_of_the_training(lines: Table) -> None:
    figure = draw(as_if(lines, "schedules"))
    constant, halves = figure.axes
    assert [line.get_label() for line in constant.lines] == ["0.8", "0.2"]
    cell = next(cell for cell in lines.cells if cell.row == "a = 0.3")
    steps, line = cell.spec.total_steps, halves.lines[0]
    assert steps < 500
    assert line.get_xdata() == pytest.approx([t / steps for t in range(steps + 1)])
    assert line.get_ydata()[:-1] == pytest.approx([cell.spec.p(t, steps) for t in range(steps)])
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in halves.lines}) == 2


def test_dots_of_the_gate_are_the_steps_that_seed_0_draws(lines: Table) -> None:
    ax, *others = draw(as_if(lines, "gates")).axes
    assert len(others) == 3
    cell = next(cell for cell in lines.cells if cell.row == "p = 0.8")
    steps = cell.spec.total_steps
    gate, t = Gate(cell.spec.p, steps, seed=0), (ax.lines[1].get_xdata() * steps).round().astype(int)
    assert len(t) == min(steps, 100)
    assert ax.lines[1].get_ydata().tolist() == gate.steps.numpy()[t].tolist()


def test_an_unknown_figure_is_answered_with_those_that_exist(lines: Table) -> None:
    with pytest.raises(InputError, match=r"lines.yaml, draw: pie is no figure: write one of error_over_cost,"):
        draw(as_if(lines, "pie"))
