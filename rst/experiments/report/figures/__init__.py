"""Figures of results: the key ``draw`` of a table file names one of `FIGURES`. All have the look of style.mplstyle."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.style
from matplotlib.figure import Figure

from rst.experiments.errors import InputError
from rst.experiments.report.figures.cost import error_over_cost, extra_time, summary
from rst.experiments.report.figures.heatmap import heatmap
from rst.experiments.report.figures.schedules import gates, schedules
from rst.experiments.report.results import folder_of
from rst.experiments.tables.expansion import Table

STYLE = Path(__file__).parents[1] / "style.mplstyle"
FIGURES = {figure.__name__: figure for figure in (error_over_cost, summary, extra_time, schedules, gates, heatmap)}


def check(table: Table) -> None:
    """Raise `InputError` if the table's ``draw`` is neither "table" nor one of `FIGURES`."""
    if table.draw not in ("table", *FIGURES):
        raise InputError(f"{table.name}.yaml, draw: {table.draw} is no figure: write one of {', '.join(FIGURES)}.")


def draw(table: Table) -> Figure:
    """The figure of the table; panels without runs say how to get them."""
    check(table)
    with mpl.style.context(STYLE):
        return FIGURES[table.draw](table)


def write(table: Table) -> list[Path]:
    """Write the figure of the table as PNG and SVG into the folder of its results; return the files."""
    figure, folder = draw(table), folder_of(table) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{table.name}.png", folder / f"{table.name}.svg"]
    with mpl.style.context(STYLE):
        figure.savefig(files[0])
        figure.savefig(files[1], metadata={"Date": None})  # without the date, equal results give equal files
    return files
