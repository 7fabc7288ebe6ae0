"""What all figures share: data with intervals, panels, headings, labels that do not overlap, and legends."""

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rst.experiments.report.labels import images_of
from rst.experiments.report.naming import command_of, scale_of
from rst.experiments.report.paper import OTHER_SEEDS, PAPER_SEEDS, of_the_paper
from rst.experiments.report.results import results
from rst.experiments.report.statistics import half_interval
from rst.experiments.tables.expansion import Table

WIDTH = 7.2
"""The width of every figure, in inches."""
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5230")
"""The colours of series, all but the last by Okabe and Ito: colour-blind readers can tell them apart."""
MARKERS = "ovPX<>p*"
LINES = ["-", "--", "-.", ":"]
PAPER: dict[str, Any] = {"marker": "D", "markersize": 4.5, "markerfacecolor": "none", "linestyle": "none"}
"""The look of the paper's numbers, which have the colour of their series."""

ERROR_LABEL = "test error [%]"
SOFT = "0.4"
"""The grey of what is said beside the data."""
HALO = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
"""The box behind letters that stand on lines."""


def data_of(table: Table) -> pd.DataFrame:
    """`rst.experiments.report.results.results` for the table's first metric; the column ``cell`` has the cell itself.

    ``half`` and ``half_seconds`` are half of the 95 % t intervals of mean error and mean time, nan for one seed;
    ``paper_half`` is that of the paper's error. The paper's numbers are left out where the runs do not have its images,
    networks and epochs.
    """
    lines = results(table)
    lines = lines[lines["metric"] == lines["metric"].iloc[0]].assign(cell=table.cells)
    comparable = [of_the_paper([cell]) for cell in table.cells]
    lines = lines.assign(paper_mean=lines["paper_mean"].where(comparable))
    paper_n = lines["dataset"].map(PAPER_SEEDS).fillna(OTHER_SEEDS)
    return lines.assign(
        half=half_interval(lines["std"], lines["n"]),
        half_seconds=half_interval(lines["train_seconds_std"], lines["timed"]),
        paper_half=half_interval(lines["paper_std"], paper_n),
    )


def families_of(data: pd.DataFrame) -> list[str]:
    """The names of the groups; if there are none, "", the name of the rows without a group."""
    return [group for group in data["group"].unique() if group] or [""]


# ---------------------------------------------------------------------------------------------------------- panels


def panels(rows: int, columns: int, height: float, **more: Any) -> tuple[Figure, np.ndarray]:
    """A figure and its axes [rows, columns], each row ``height`` inches high; ``more`` is for `Figure.subplots`."""
    figure = Figure(figsize=(WIDTH, height * rows + 0.9))
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def heading_of(table: Table) -> str:
    """The title of the table, and below it what the points are of."""
    facts = [images_of(table.cells)] if table.runs else []
    facts += [f"scale {scale}"] if table.runs and (scale := scale_of(table)) else []
    facts += ["mean and 95 % t interval over n seeds"] if table.runs else []
    return formula(f"{table.title}\n{'; '.join(facts)}".strip())


def has_runs(ax: Axes, own: pd.DataFrame, table: Table, value: str = "mean") -> bool:
    """Whether the panel has a value. Its title then gets the number of runs; else it shows how to get some."""
    if own[value].isna().all():
        command = textwrap.fill(command_of(table), 28)  # Else it would run into the panel beside it.
        text = f"no runs yet:\n{command}"
        if own["n"].any():
            text = f"no run was alone on its cores:\nscripts/runs.py remove, then\n{command}"
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=SOFT)
        ax.tick_params(labelleft=False, labelbottom=False, length=0)
        ax.grid(visible=False)
        return False
    least, most, planned = own["n"].min(), own["n"].max(), own["planned"].max()
    of = f"/{planned}" if least < planned else ""
    label = f"n = {least}{of}" if least == most else f"n = {least} to {most}{of}"
    ax.set_title(label, loc="right", fontsize="small", color=SOFT)
    return True


# ---------------------------------------------------------------------------------------------------------- letters


def formula(text: str) -> str:
    """The text with its symbols as formulas: γ_rst, p_cos1(t), Δη."""
    text = text.replace("$", r"\$").replace("Δη", r"$\Delta\eta$")
    text = re.sub(r"(?<!\w)p\(t\)", "$p(t)$", text)
    return re.sub(r"(?<!\w)([A-Za-zγλρ])_(\w+)(\(t\))?", _with_index, text)


def _with_index(match: re.Match[str]) -> str:
    greek = {"γ": r"\gamma", "λ": r"\lambda", "ρ": r"\rho"}
    return rf"${greek.get(match[1], match[1])}_{{\mathrm{{{match[2]}}}}}{match[3] or ''}$"


def joined(*parts: str, by: str = ", ") -> str:
    """The parts that are not empty, in one text."""
    return by.join(part for part in parts if part)


def apart(values: Sequence[float], gap: float) -> list[float]:
    """The values moved as little as needed, in the same order, until neighbours are at least ``gap`` apart.

    Blocks of values that touch are centred on the mean of the values that they hold.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    blocks: list[list[float]] = []  # the wanted first position of each block, and its size
    for i in order:
        blocks.append([values[i], 1])
        while len(blocks) > 1 and blocks[-2][0] + gap * blocks[-2][1] > blocks[-1][0]:
            first, size = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + (first - gap * before[1]) * size) / (before[1] + size)
            before[1] += size
    places = [first + gap * k for first, size in blocks for k in range(int(size))]
    return [place for _, place in sorted(zip(order, places, strict=True))]


# ---------------------------------------------------------------------------------------------------------- legends


def look_of(i: int) -> dict[str, Any]:
    """Colour, marker and line style number i."""
    return {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "linestyle": LINES[i % len(LINES)]}


def key(label: str, **look: Any) -> Line2D:
    """An entry of a legend: its label and its look."""
    return Line2D([], [], label=formula(label), **look)


def key_of_paper(data: pd.DataFrame) -> list[Line2D]:
    """The legend's entry for the paper's numbers, if any are shown."""
    return [key("paper, in the colour of its series", color=SOFT, **PAPER)] if data["paper_mean"].notna().any() else []


def legend(figure: Figure, entries: Sequence[Line2D], columns: int = 4) -> None:
    """Add one legend under all panels, where it covers no data."""
    if entries:
        figure.legend(handles=entries, loc="outside lower center", ncols=columns)
