"""Figures of results. Which one a table file gets is its ``draw``; all share the look of style.mplstyle."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.style
from matplotlib.figure import Figure

from rst.experiments.config import InputError
from rst.experiments.sweep import Table
from rst.report.figures.cost import error_over_cost, extra_time, summary
from rst.report.figures.heatmap import heatmap
from rst.report.figures.schedules import gates, schedules
from rst.report.results import folder_of

STYLE = Path(__file__).parents[1] / "style.mplstyle"
FIGURES = {figure.__name__: figure for figure in (error_over_cost, summary, extra_time, schedules, gates, heatmap)}


def check(table: Table) -> None:
    """Raise `InputError` where the table's ``draw`` is neither "table" nor one of `FIGURES`."""
    if table.draw not in ("table", *FIGURES):
        raise InputError(f"{table.name}.yaml, draw: {table.draw} is no figure: write one of {', '.join(FIGURES)}.")


def draw(table: Table) -> Figure:
    """The table's figure, whatever runs it lacks."""
    check(table)
    with mpl.style.context(STYLE):
        return FIGURES[table.draw](table)


def write(table: Table) -> list[Path]:
    """Write the table's figure as PNG and SVG into the folder of its results; the files."""
    figure, folder = draw(table), folder_of(table) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{table.name}.png", folder / f"{table.name}.svg"]
    with mpl.style.context(STYLE):
        figure.savefig(files[0])
        figure.savefig(files[1], metadata={"Date": None})  # so that equal results are equal files
    return files
