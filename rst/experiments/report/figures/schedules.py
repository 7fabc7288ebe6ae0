"""p(t): when a training takes its sharp steps."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rst.experiments.errors import InputError
from rst.experiments.report.figures.axis import parameter_of
from rst.experiments.report.figures.panels import (
    HALO,
    PALETTE,
    SOFT,
    apart,
    data_of,
    families_of,
    formula,
    joined,
    key,
    legend,
    panels,
)
from rst.experiments.tables.expansion import Cell, Table
from rst.gate import Gate
from rst.schedules import Schedule

TIME_LABEL = "$t/T$, share of the training"
WINDOWS = 20
"""The rate of sharp steps is taken over this part of the training."""
START = 0.08
"""Where the label of a line stands that is named at its start, in units of T."""
LETTERS = 0.055
"""The height of a label of a line, in units of p."""
NEAR: dict[str, Any] = {"textcoords": "offset points", "fontsize": "small", "annotation_clip": False}


def schedules(table: Table) -> Figure:
    """p(t) of every row, one panel for each family (Figures 3 and 5)."""
    data = data_of(table)
    families = families_of(data)
    figure, axes = panels(1, len(families), height=2.5)
    for ax, family in zip(axes[0], families, strict=True):
        ax.set_title(draw_schedules(ax, data, family), loc="left")
    axes[0, 0].set_ylabel("$p(t)$")
    return figure


def p_of(cell: Cell) -> Schedule:
    """p(t) of a row. Raises InputError where it has none, since the clean pass of each step decides."""
    p = cell.spec.p
    if not isinstance(p, Schedule):
        raise InputError(f"row {cell.row} has schedule {p}, which is no p(t) that can be drawn: leave the row out.")
    return p


def gates(table: Table) -> Figure:
    """p(t) of each row, and the rate of the sharp steps that seed 0 draws from it (Figure 8); a panel for each row."""
    data = data_of(table)
    own = data[data["group"].isin(families_of(data))]
    rows: dict[str, Cell] = dict(zip(own["row"], own["cell"], strict=True))
    figure, axes = panels(math.ceil(len(rows) / 2), 2, height=1.6, sharex=True, sharey=True)
    for ax in axes.flat[len(rows) :]:
        ax.remove()
    for ax, (row, cell) in zip(axes.flat, rows.items(), strict=False):
        schedule, steps = p_of(cell), cell.spec.total_steps
        gate, t = Gate(schedule, steps, seed=0), _some(steps, 500)
        ax.plot(*_windowed(gate.steps.numpy().astype(float)), color=PALETTE[0], linewidth=1.2)
        ax.plot(t / steps, [schedule(s, steps) for s in t.tolist()], color="black", linewidth=1)
        ax.set_title(formula(row), loc="left")
        costs = rf"$\Delta\eta$ = {gate.mean:.3f}, of this gate {gate.share(steps):.3f}"
        ax.set_title(costs, loc="right", fontsize="small", color=SOFT)
        ax.set(xlim=(0, 1), ylim=(-0.05, 1.05))
    for ax in axes[:, 0]:
        ax.set_ylabel("$p(t)$")
    for ax in figure.axes[-2:]:
        ax.set_xlabel(TIME_LABEL)
        ax.tick_params(labelbottom=True)
    rate = "rate of sharp steps of seed 0, windows of T/20"
    legend(figure, [key("p(t)", color="black"), key(rate, color=PALETTE[0])])
    return figure


def _windowed(gate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """t/T at the middle of each window, and the share of the steps in it that are sharp."""
    width = max(1, len(gate) // WINDOWS)
    rate = np.convolve(gate, np.full(width, 1 / width), mode="valid")
    return (np.arange(len(rate)) + width / 2) / len(gate), rate


def draw_schedules(ax: Axes, data: pd.DataFrame, family: str) -> str:
    """Draw p(t) of each row of the family over t/T, as a staircase of its steps; return the title of the panel."""
    cells, parameter = _labelled(data, family)
    lines = {}
    for label, cell in cells.items():
        schedule, steps = p_of(cell), cell.spec.total_steps
        t = _some(steps, 500)
        p = [schedule(s, steps) for s in t.tolist()]
        x, y = np.append(t / steps, 1), np.append(p, p[-1])
        ax.plot(x, y, drawstyle="steps-post", label=label, color=PALETTE[0], linewidth=1.1)
        lines[label] = x, y
    _label(ax, lines)
    ax.set(xlabel=TIME_LABEL, xlim=(0, 1), ylim=(-0.03, 1.03))
    return joined(family, f"${parameter}$ = ..." if parameter else "")


def _label(ax: Axes, lines: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Name each line at its right end if it ends alone, else at its left end, else where it rises or falls most."""
    at_end = _alone({label: float(y[-1]) for label, (_, y) in lines.items()})
    at_start = _alone({label: float(y[0]) for label, (_, y) in lines.items()})
    at_start = {label: place for label, place in at_start.items() if label not in at_end}
    places = apart(list(at_end.values()), LETTERS)
    for label, height in zip(at_end, places, strict=True):
        ax.annotate(formula(label), (1, height), (3, 0), va="center", **NEAR)
    for label in at_start:
        ax.annotate(formula(label), _at(lines[label], START), (0, 0), ha="center", va="center", bbox=HALO, **NEAR)
    elsewhere = [label for label in lines if label not in at_end and label not in at_start]
    for k, label in enumerate(elsewhere):
        x, y = lines[label]
        steps = np.abs(np.diff(y))
        middle = _at(lines[label], 0.5)
        diagonal = x[int(steps.argmax()) + 1], 1 - (k + 1) / (len(elsewhere) + 1)  # jumps stand side by side
        place = diagonal if steps.max() > 0.1 else middle
        ax.annotate(formula(label), place, (0, 0), ha="center", va="center", bbox=HALO, **NEAR)


def _at(line: tuple[np.ndarray, np.ndarray], share: float) -> tuple[float, float]:
    """The point of the line at this share of the training."""
    x, y = line
    at = int(share * len(x))
    return x[at], y[at]


def _alone(places: dict[str, float]) -> dict[str, float]:
    """Those of the labels whose place no other label has."""
    counts = Counter(round(place, 2) for place in places.values())
    return {label: place for label, place in places.items() if counts[round(place, 2)] == 1}


def _labelled(data: pd.DataFrame, family: str) -> tuple[dict[str, Cell], str | None]:
    """One cell for each row by its label, and the parameter that is the label, if there is one.

    The label is the value of the one parameter in which the rows differ; without such a parameter, the row's name.
    """
    own = data[data["group"] == family]
    cells = dict(zip(own["row"], own["cell"], strict=True))
    parameter = parameter_of(cells.values())
    return {f"{c.spec.schedule.options[parameter]:g}" if parameter else row: c for row, c in cells.items()}, parameter


def _some(steps: int, number: int) -> np.ndarray:
    """The given number of steps, evenly spread over the training; all steps if there are fewer."""
    return np.unique(np.linspace(0, steps - 1, number).round().astype(int))
