"""Figures show the numbers of the records, and say what they are of."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import finished, moved, table_files, values
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from rst.experiments.errors import InputError
from rst.experiments.report.figures import caption_of, draw, drawn_as
from rst.experiments.report.figures.axis import COST_LABEL as COST
from rst.experiments.report.figures.panels import apart, formula
from rst.experiments.report.paper import paper_numbers
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
    # Both families have a row at Δη = 1/2.
    "equal": """
        title: At equal cost
        draw: summary
        seeds: 1
        overrides: [dataset=digits, model=wrn10_1]
        groups:
          random: {rows: {RST: [scheme=rst]}}
          late: {rows: {tail: [scheme=rst, schedule=tail]}}
        """,
    "radius": """
        title: A sweep of one's own
        draw: error_over_cost
        x: variant.rho
        seeds: 1
        overrides: [dataset=digits, model=wrn10_1]
        rows:
          SAM <rho>: {overrides: [scheme=sam, "variant.rho=<rho>"], grid: {rho: [0.4, 0.01, 0.1]}}
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
            xy = np.asarray(collection.get_offsets()).round(6).tolist()
            areas = np.resize(collection.get_sizes(), len(xy))
            found |= {(x, y): float(area) for (x, y), area in zip(xy, areas, strict=True)}
    return found


def in_legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# --------------------------------------------------------------------------------------------------- error over cost


def test_every_family_network_and_data_set_has_a_panel(drawn: Figure) -> None:
    assert len(drawn.axes) == 2 * 2 * 2
    titles = [ax.get_title("left") for ax in drawn.axes]
    assert titles[::2] == ["Narrow, Clean", "Narrow, Noisy", "Wide, Clean", "Wide, Noisy"]
    assert titles[1::2] == ["halves"] * 4  # The families over Δη share a panel.
    assert {ax.get_ylabel() for ax in drawn.axes[::2]} == {"test error [%]"}


def test_a_line_goes_from_sgd_through_the_rows_of_a_family_to_sam(lines: Table, drawn: Figure) -> None:
    ax = drawn.axes[0]
    cells = {cell.row: cell for cell in lines.cells if cell.network == "Narrow" and cell.dataset == "Clean"}
    order = [cells[row] for row in ("SGD", "p = 0.2", "p = 0.8", "SAM")]
    assert ax.lines[0].get_xdata() == pytest.approx([0, 0.2, 0.8, 1])
    assert ax.lines[0].get_ydata() == pytest.approx([mean(values(cell)) for cell in order])
    assert drawn.axes[6].get_xlabel() == COST


def test_error_bars_are_the_t_interval_of_the_mean(lines: Table, drawn: Figure) -> None:
    ax = drawn.axes[0]
    bars = [path for collection in ax.collections for path in collection.get_paths() if len(path.vertices) == 2]
    sgd = values(lines.cells[0])
    half = 12.7062 * stdev(sgd) / 2**0.5  # t for 95 % and one degree of freedom, by the tables of any textbook
    wanted = pytest.approx([mean(sgd) - half, mean(sgd) + half], rel=1e-4)
    assert any(bar.vertices[:, 1] == wanted for bar in bars)
    assert "95 % t interval" in drawn.get_suptitle()


def test_a_family_of_one_cost_is_drawn_over_its_parameter_between_levels(lines: Table, drawn: Figure) -> None:
    ax = drawn.axes[1]
    assert ax.lines[0].get_xdata() == pytest.approx([0.3, 0.9])
    assert drawn.axes[7].get_xlabel() == "$a$, $p$ in the first half"
    levels = {line.get_ydata()[0] for line in ax.lines if list(line.get_xdata()) == [0, 1]}
    ends = [cell for cell in lines.cells if (cell.group, cell.network, cell.dataset) == ("", "Narrow", "Clean")]
    assert levels == {mean(values(cell)) for cell in ends}
    assert {text.get_text() for text in ax.texts} == {"SGD", "SAM"}
    low, high = ax.get_ylim()
    assert all(low < level < high for level in levels)


def test_areas_of_markers_are_proportional_to_the_passes(lines: Table, drawn: Figure) -> None:
    passes = {round(mean(values(cell)), 6): mean(values(cell, "propagations")) for cell in lines.cells}
    ratios = [area / passes[y] for ax in drawn.axes for (_, y), area in points(ax).items()]
    assert len(ratios) == 4 * (4 + 2)
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_the_legend_names_families_ends_and_passes(drawn: Figure) -> None:
    assert in_legend(drawn) == ["constant", "halves", "SGD", "SAM", "area: 300 passes", "area: 600 passes"]


def diamonds(figure: Figure) -> list[float]:
    """The paper's numbers that the first panel shows."""
    shown = [line.get_ydata() for line in figure.axes[0].lines if line.get_marker() == "D"]
    return [y for y in np.concatenate(shown).tolist() if not np.isnan(y)]


def test_the_papers_numbers_are_drawn_beside_ours(load: Load) -> None:
    figure = draw(finished(load("paper")))
    numbers = paper_numbers("table01").query(
        "model == 'ResNet18' and dataset == 'Cifar10' and scheme == 'SGD' and metric == 'error_pct'"
    )
    assert diamonds(figure) == numbers["mean"].tolist()
    assert "paper, in the colour of its series" in in_legend(figure)


@pytest.mark.parametrize("other", [["scale=smoke", "dataset.source=auto"], ["dataset.source=digits"]])
def test_the_papers_numbers_are_never_drawn_beside_runs_of_another_scale_or_of_other_images(
    load: Load, other: list[str]
) -> None:
    figure = draw(finished(load("paper", *other)))
    assert diamonds(figure) == []
    assert not [entry for entry in in_legend(figure) if "paper" in entry]


def test_the_heading_names_scale_and_images(load: Load) -> None:
    assert draw(load("paper")).get_suptitle().startswith("Beside the paper\nCIFAR-10; scale paper;")
    assert "digits as CIFAR-10; scale smoke" in draw(load("paper", "scale=smoke")).get_suptitle()
    assert draw(load("paper"), heading=False).get_suptitle() == ""


def test_a_sweep_chooses_its_x(load: Load) -> None:
    table = finished(load("radius"))
    [ax] = draw(table).axes
    errors = {cell.spec.variant.rho: mean(values(cell)) for cell in table.cells}
    assert ax.get_xlabel() == "variant.rho"
    assert ax.get_xscale() == "log"
    assert ax.lines[0].get_xdata().tolist() == sorted(errors)
    assert ax.lines[0].get_ydata().tolist() == [errors[rho] for rho in sorted(errors)]


@pytest.mark.parametrize(("x", "value"), [("variant.radius", "None"), ("variant.name", "sam"), ("variant", "{")])
def test_an_x_that_is_no_number_is_refused(load: Load, x: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"radius.yaml, x: {x} is {re.escape(value)}.*such as variant.rho"):
        draw(replace(load("radius"), x=x))


# ------------------------------------------------------------------------------------------------ the other figures


def test_the_summary_shows_every_family_at_its_cost(lines: Table) -> None:
    figure = draw(as_if(lines, "summary"))
    assert in_legend(figure) == ["constant", "halves", "SGD", "SAM"]
    over_cost, halves, *_ = figure.axes
    assert sorted(x for x, _ in points(over_cost)) == pytest.approx([0, 0.2, 0.8, 1])
    assert sorted(x for x, _ in points(halves)) == pytest.approx([0.3, 0.9])
    assert over_cost.get_ylabel() == "test error [%]"


def test_points_at_one_cost_stand_side_by_side(load: Load) -> None:
    figure = draw(finished(load("equal")))
    (one, _), (other, _) = points(figure.axes[0])
    assert abs(one - other) >= 0.018 - 1e-6
    assert (one + other) / 2 == pytest.approx(0.5, abs=0.002)


def test_without_families_each_point_has_its_name_and_sams_interval_names_the_cheapest_row_in_it(
    load: Load, tmp_path: Path
) -> None:
    table = moved(load("lines"), tmp_path)
    cells = [
        cell for cell in table.cells if (cell.network, cell.dataset) == ("Narrow", "Clean") and cell.group != "halves"
    ]
    table = replace(table, draw="summary", cells=[replace(cell, group="") for cell in cells])
    for run in finished(table).runs:
        error = 12.0 if run.spec.mean_p == 0 else 2.0 + 0.2 * run.spec.seed
        run.record.finish(run.record.summary | {"test_error": error})
    texts = " ".join(text.get_text() for text in draw(table).axes[0].texts)
    assert "SGD: 12.0 %" in texts
    assert "SAM: 2.1 %, 1.99× time" in texts
    assert "error of SAM, 95 % interval:\np = 0.2 lies in it at\n20 % of the extra passes" in texts


def test_a_table_of_errors_has_its_intervals_as_a_figure(lines: Table) -> None:
    table = as_if(lines, "table")
    assert drawn_as(table) == "intervals"
    ax = draw(table).axes[0]
    cells = [cell for cell in lines.cells if (cell.network, cell.dataset) == ("Narrow", "Clean")]
    assert [label.get_text() for label in ax.get_yticklabels()] == [cell.row for cell in cells]
    assert ax.lines[0].get_xdata().tolist() == pytest.approx([mean(values(cell)) for cell in cells])


def test_measured_extra_time_is_drawn_over_the_realised_cost_with_the_line_of_theory(
    load: Load, tmp_path: Path
) -> None:
    table = as_if(finished(moved(load("lines"), tmp_path)), "extra_time")
    for run in table.runs:
        run.record.finish(run.record.summary | {"extra_propagations_realised": 0.9 * run.spec.mean_p})
    schedules, times = draw(table).axes
    theory, *measured = times.lines
    assert (theory.get_xy1(), theory.get_slope()) == ((0, 0), 1)
    own = [line for line in measured if len(line.get_xdata()) == 6]
    assert len(own) == 4  # two networks on two data sets
    shifts = []
    for line in own:
        x, y = line.get_xdata(), line.get_ydata()
        shifts.append(x[0])  # SGD is first, at 0
        extra = (x - shifts[-1]) / 0.9
        assert y - shifts[-1] == pytest.approx(extra**2, abs=1e-6)  # as made_up_runs has it
    assert len(set(np.round(shifts, 6))) == 4  # moved along x = y, so that none covers another
    assert times.get_xlabel() == COST + ", realised"
    assert schedules.get_title("left") == "A  constant, $p$ = ...; halves, $a$ = ..."


def test_schedules_are_drawn_over_the_share_of_the_training_each_with_its_name_at_its_end(lines: Table) -> None:
    figure = draw(as_if(lines, "schedules"))
    constant, halves = figure.axes
    assert {text.get_text(): text.xy for text in constant.texts} == {"0.8": (1, 0.8), "0.2": (1, 0.2)}
    cell = next(cell for cell in lines.cells if cell.row == "a = 0.3")
    steps, line = cell.spec.total_steps, halves.lines[0]
    assert steps < 500
    assert line.get_xdata() == pytest.approx([t / steps for t in range(steps + 1)])
    assert line.get_ydata()[:-1] == pytest.approx([cell.spec.p(t, steps) for t in range(steps)])
    assert len({line.get_color() for line in halves.lines}) == 1


def test_the_rate_of_the_gate_is_that_of_seed_0_in_windows_of_a_twentieth_of_the_training(lines: Table) -> None:
    ax, *others = draw(as_if(lines, "gates")).axes
    assert len(others) == 3
    cell = next(cell for cell in lines.cells if cell.row == "p = 0.8")
    steps = cell.spec.total_steps
    sharp, width = Gate(cell.spec.p, steps, seed=0).steps.tolist(), steps // 20
    rates = [sum(sharp[i : i + width]) / width for i in range(steps - width + 1)]
    assert ax.lines[0].get_ydata() == pytest.approx(rates)
    assert ax.lines[0].get_xdata() == pytest.approx([(i + width / 2) / steps for i in range(len(rates))])


@given(st.lists(st.floats(-10, 10), max_size=12), st.floats(0.01, 2))
def test_labels_are_moved_until_they_are_apart_and_no_further(places: list[float], gap: float) -> None:
    moved = apart(places, gap)
    order = sorted(range(len(places)), key=places.__getitem__)
    in_order = [moved[i] for i in order]
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(in_order))
    if all(b - a >= gap for a, b in pairwise(sorted(places))):
        assert moved == pytest.approx(places)
    assert sum(moved) == pytest.approx(sum(places), abs=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RST: p_cos1(t)", r"RST: $p_{\mathrm{cos1}}(t)$"),
        ("γ_rst near 1", r"$\gamma_{\mathrm{rst}}$ near 1"),
        ("Δη, p(t)", r"$\Delta\eta$, $p(t)$"),
        ("a file_name of $5", r"a file_name of \$5"),
    ],
)
def test_symbols_are_set_as_formulas(text: str, expected: str) -> None:
    assert formula(text) == expected


def test_an_unknown_figure_is_answered_with_those_that_exist(lines: Table) -> None:
    with pytest.raises(InputError, match=r"lines.yaml, draw: pie is no figure: write one of error_over_cost,"):
        draw(as_if(lines, "pie"))


def test_a_caption_explains_the_papers_marks_only_where_some_are_shown(load: Load) -> None:
    assert "Diamonds are the paper's" in caption_of(load("paper"))
    assert "Diamonds" not in caption_of(load("paper", "scale=smoke"))
    assert "Lower left is where one wants to be" in caption_of(load("paper", "scale=smoke"))
