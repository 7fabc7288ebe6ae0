"""What all figures share: data, panels with titles and labels, and legends."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rst.experiments.report.results import command_of, of_the_paper, results, scale_of
from rst.experiments.tables.expansion import Cell, Table

WIDTH = 7.2
"""The width of every figure, in inches."""
MARKERS = "ovPX<>p*"
LINES = ["-", "--", "-.", ":"]
PAPER: dict[str, Any] = {"color": "0.45", "marker": "D", "markerfacecolor": "none", "linestyle": "none"}

COST = "extra_propagations_expected"
COST_LABEL = "Δη [extra passes a step]"
ERROR_LABEL = "test error [%]"


def data_of(table: Table) -> pd.DataFrame:
    """`rst.experiments.report.results.results` for the table's first metric; the column ``cell`` has the cell itself.

    The paper's numbers are left out where the runs do not have its images, networks and epochs.
    """
    lines = results(table)
    lines = lines[lines["metric"] == lines["metric"].iloc[0]].assign(cell=table.cells)
    comparable = [of_the_paper([cell]) for cell in table.cells]
    return lines.assign(paper_mean=lines["paper_mean"].where(comparable))


def families_of(data: pd.DataFrame) -> list[str]:
    """The names of the groups; if there are none, "", the name of the rows without a group."""
    return [group for group in data["group"].unique() if group] or [""]


def parameter_of(cells: Iterable[Cell]) -> str | None:
    """The parameter of the schedules that differs between the cells, if exactly one does."""
    settings = [{"name": cell.spec.schedule.name, **cell.spec.schedule.options} for cell in cells]
    keys = {key for setting in settings for key in setting}
    differing = [key for key in keys if len({setting.get(key) for setting in settings}) > 1]
    return differing[0] if len(differing) == 1 and differing != ["name"] else None


def panels(table: Table, rows: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure with title, scale and images above it, and its axes [rows, columns], each ``height`` inches high."""
    figure = Figure(figsize=(WIDTH, height * rows + 1.1))
    specs = [cell.spec for cell in table.cells]
    images = dict.fromkeys("digits" if spec.stands_in else spec.dataset.name for spec in specs)
    of = "; mean ± standard deviation over n seeds" if table.runs else ""
    scale = f"scale {specs[0].scale}, " * (scale_of(table) != "")
    figure.suptitle(f"{table.title}\n{scale}images: {', '.join(images)}{of}")
    return figure, figure.subplots(rows, columns, squeeze=False)


def has_runs(ax: Axes, own: pd.DataFrame, table: Table, value: str = "mean") -> bool:
    """Whether the panel has a value. Its title then gets the number of runs; else it shows how to get some."""
    if own[value].isna().all():
        text = f"no runs yet:\n{command_of(table)}"
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="0.4")
        ax.set_yticks([])
        return False
    least, most, planned = own["n"].min(), own["n"].max(), own["planned"].max()
    of = f"/{planned}" if least < planned else ""
    label = f"n = {least}{of}" if least == most else f"n = {least}{of} to {most}{of}"
    ax.set_title(label, loc="right", fontsize="small", color="0.4")
    return True


def look_of(i: int) -> dict[str, Any]:
    """Colour, marker and line style number i."""
    return {"color": f"C{i + 1}", "marker": MARKERS[i % len(MARKERS)], "linestyle": LINES[i % len(LINES)]}


def joined(*parts: str, by: str = ", ") -> str:
    """The parts that are not empty, in one text."""
    return by.join(part for part in parts if part)


def key(label: str, **look: Any) -> Line2D:
    """An entry of a legend: its label and its look."""
    return Line2D([], [], label=label, **look)


def key_of_paper(data: pd.DataFrame) -> list[Line2D]:
    """The legend's entry for the paper's numbers, if any are shown."""
    return [key("paper", **PAPER)] if data["paper_mean"].notna().any() else []


def legend(figure: Figure, entries: Sequence[Line2D], columns: int = 4) -> None:
    """Add one legend under all panels, where it covers no data."""
    figure.legend(handles=entries, loc="outside lower center", ncols=columns)
