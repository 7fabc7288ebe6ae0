"""Figures of results: the key ``draw`` of a table file names one of `FIGURES`. All have the look of style.mplstyle."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.style
from matplotlib.figure import Figure

from rst.experiments.errors import InputError
from rst.experiments.report.figures.axis import check_x
from rst.experiments.report.figures.cost import error_over_cost, summary
from rst.experiments.report.figures.heatmap import heatmap
from rst.experiments.report.figures.intervals import intervals
from rst.experiments.report.figures.panels import heading_of
from rst.experiments.report.figures.saving import STYLE, save
from rst.experiments.report.figures.schedules import gates, schedules
from rst.experiments.report.figures.times import extra_time
from rst.experiments.report.naming import folder_of, stem_of
from rst.experiments.report.paper import of_the_paper
from rst.experiments.tables.expansion import Table

FIGURES = {
    figure.__name__: figure for figure in (error_over_cost, summary, extra_time, schedules, gates, heatmap, intervals)
}
MARKS = {
    "error_over_cost": (
        "Points: mean test error over seeds after the last epoch, with its 95 % t interval; the area of a point is "
        "proportional to the passes over a batch. Lower left is where one wants to be: a small error at a small cost."
    ),
    "summary": (
        "Points: mean test error over seeds after the last epoch, with its 95 % t interval. Points at one cost stand "
        "side by side. Lower left is where one wants to be: a small error at a small cost."
    ),
    "extra_time": (
        "A: p(t) of each schedule, with its parameter at the end of its line. B: training time beyond SGD's, as a part "
        "of SAM's beyond SGD's, over the extra passes that the gates really took, with 95 % t intervals over seeds; "
        "networks are moved apart along x = y. On that line a sharp step costs one more pass and nothing else."
    ),
    "schedules": "Lines: p(t), the probability that step t is sharp, each with its parameter beside it.",
    "gates": (
        "Black: p(t). Colour: the rate of sharp steps that seed 0 draws, in windows of a twentieth of the training. It "
        "follows p(t) within the noise of its window."
    ),
    "heatmap": (
        "Cells: mean test error over seeds after the last epoch, and half of its 95 % t interval; the best cell is "
        "outlined. The marks on the colour bar are SGD and SAM: cells of a colour below SAM's mark are better than it."
    ),
    "intervals": (
        "Points: mean test error over seeds after the last epoch, with its 95 % t interval. The dotted line is the "
        "best row. Left is better."
    ),
}
"""What the marks of each figure are, and where the good ones lie."""
PAPERS = {
    "error_over_cost": "Diamonds are the paper's.",
    "summary": "Diamonds are the paper's.",
    "intervals": "Diamonds are the paper's, with the interval that its standard deviation gives.",
}
"""What the paper's marks are, in figures that have some."""


def drawn_as(table: Table) -> str:
    """The figure of a table: that of its key ``draw``, or `intervals` for a table of errors; empty for formulas."""
    if table.draw != "table":
        return table.draw
    return "intervals" if table.runs and table.metrics else ""


def check(table: Table) -> None:
    """Raise `InputError` if the table's ``draw`` is neither "table" nor one of `FIGURES`, or its ``x`` no number."""
    if table.draw not in ("table", *FIGURES):
        raise InputError(f"{table.name}.yaml, draw: {table.draw} is no figure: write one of {', '.join(FIGURES)}.")
    check_x(table)


def draw(table: Table, heading: bool = True) -> Figure:
    """The figure of the table; panels without runs say how to get them.

    Args:
        table: a table that has a figure (`drawn_as`).
        heading: whether title, images and scale stand above the panels. A paper's own caption says these.
    """
    check(table)
    with mpl.style.context(STYLE):
        figure = FIGURES[drawn_as(table)](table)
        if heading:
            figure.suptitle(heading_of(table), x=0.01, ha="left", linespacing=1.3)
        return figure


def caption_of(table: Table) -> str:
    """What a reader should see in the figure, and what its marks are."""
    beside_the_paper = table.paper and of_the_paper(table.cells) and drawn_as(table) in PAPERS
    papers = PAPERS[drawn_as(table)] if beside_the_paper else ""
    return " ".join(filter(None, (table.caption, MARKS[drawn_as(table)], papers)))


def write(table: Table) -> list[Path]:
    """Write the figure of the table into the folder of its results; return the files.

    PNG and SVG have a heading; the PDF is for papers, and has none.
    """
    folder = folder_of(table) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{stem_of(table)}.{kind}" for kind in ("png", "svg", "pdf")]
    figure = draw(table)
    save(figure, files[0])
    save(figure, files[1])
    save(draw(table, heading=False), files[2])
    return files
