"""What all figures share: their data, their panels with what is written around them, and their legends."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rst.experiments.sweep import Cell, Table
from rst.report.results import results, stands_in

WIDTH = 7.2
"""Of every figure, in inches."""
MARKERS = "ovPX<>p*"
LINES = ["-", "--", "-.", ":"]
PAPER: dict[str, Any] = {"color": "0.45", "marker": "D", "markerfacecolor": "none", "linestyle": "none"}

COST = "extra_propagations_expected"
COST_LABEL = "Δη [extra passes a step]"
ERROR_LABEL = "test error [%]"


def data_of(table: Table) -> pd.DataFrame:
    """`rst.report.results.results` of the table's first metric, with each line's cell.

    Without the paper's numbers where the runs are not of its scale and images.
    """
    lines = results(table)
    lines = lines[lines["metric"] == lines["metric"].iloc[0]].assign(cell=table.cells)
    comparable = [cell.cfg.scale == "paper" and not stands_in(cell) for cell in table.cells]
    return lines.assign(paper_mean=lines["paper_mean"].where(comparable))


def families_of(data: pd.DataFrame) -> list[str]:
    """The groups of the rows; the rows without a group where there are no others."""
    return [group for group in data["group"].unique() if group] or [""]


def parameter_of(cells: Iterable[Cell]) -> str | None:
    """The key of the schedule that alone differs between the cells, if there is one."""
    settings = [dict(cell.cfg.schedule) for cell in cells]
    keys = {key for setting in settings for key in setting}
    differing = [key for key in keys if len({setting.get(key) for setting in settings}) > 1]
    return differing[0] if len(differing) == 1 and differing != ["_target_"] else None


def panels(table: Table, rows: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure that says what it is of, and its axes [rows, columns], each ``height`` inches high."""
    figure = Figure(figsize=(WIDTH, height * rows + 1.1))
    cfgs = [cell.cfg for cell in table.cells]
    images = dict.fromkeys("digits" if cfg.dataset.source == "digits" else cfg.dataset.name for cfg in cfgs)
    of = "; mean ± standard deviation over n seeds" if table.jobs else ""
    figure.suptitle(f"{table.title}\nscale {cfgs[0].scale}, images: {', '.join(images)}{of}")
    return figure, figure.subplots(rows, columns, squeeze=False)


def has_runs(ax: Axes, own: pd.DataFrame, table: Table, value: str = "mean") -> bool:
    """Whether the panel has anything to show; writes over it how many runs there are, or in it how to get them."""
    if own[value].isna().all():
        command = f"make {table.name} SCALE={table.cells[0].cfg.scale}"
        ax.text(0.5, 0.5, f"no runs yet:\n{command}", transform=ax.transAxes, ha="center", va="center", color="0.4")
        ax.set_yticks([])
        return False
    least, most, wanted = own["n"].min(), own["n"].max(), own["wanted"].max()
    of = f"/{wanted}" if least < wanted else ""
    label = f"n = {least}{of}" if least == most else f"n = {least}{of} to {most}{of}"
    ax.set_title(label, loc="right", fontsize="small", color="0.4")
    return True


def look_of(i: int) -> dict[str, Any]:
    """Look of the i-th of what a figure tells apart."""
    return {"color": f"C{i + 1}", "marker": MARKERS[i % len(MARKERS)], "linestyle": LINES[i % len(LINES)]}


def joined(*parts: str, by: str = ", ") -> str:
    """The parts that there are."""
    return by.join(part for part in parts if part)


def key(label: str, **look: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=label, **look)


def key_of_paper(data: pd.DataFrame) -> list[Line2D]:
    """The entry of the paper's numbers, if any are shown."""
    return [key("paper", **PAPER)] if data["paper_mean"].notna().any() else []


def legend(figure: Figure, entries: Sequence[Line2D], columns: int = 4) -> None:
    """One legend, under all panels, so over no data."""
    figure.legend(handles=entries, loc="outside lower center", ncols=columns)
