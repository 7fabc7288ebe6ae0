"""p(t): when a training takes its sharp steps."""

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rst.experiments.errors import InputError
from rst.experiments.report.figures.panels import (
    data_of,
    families_of,
    joined,
    key,
    legend,
    look_of,
    panels,
    parameter_of,
)
from rst.experiments.tables.expansion import Cell, Table
from rst.gate import Gate
from rst.schedules import Schedule

TIME_LABEL = "t/T, share of the training"
DOTS = 100
"""How many steps, spread over the training, have a dot for their gate."""


def schedules(table: Table) -> Figure:
    """p(t) of every row, one panel for each family (Figures 3 and 5)."""
    data = data_of(table)
    families, looks = families_of(data), looks_of(data)
    figure, axes = panels(table, 1, len(families), height=2.4)
    for ax, family in zip(axes[0], families, strict=True):
        ax.set_title(draw_schedules(ax, data, family, looks), loc="left")
    axes[0, 0].set_ylabel("p(t)")
    legend(figure, [key(label, **look) for label, look in looks.items()], columns=9)
    return figure


def p_of(cell: Cell) -> Schedule:
    """p(t) of a row. Raises InputError where it has none, since the clean pass of each step decides."""
    p = cell.spec.p
    if not isinstance(p, Schedule):
        raise InputError(f"row {cell.row} has schedule {p}, which is no p(t) that can be drawn: leave the row out.")
    return p


def gates(table: Table) -> Figure:
    """p(t) of each row, and the gate X_t that seed 0 draws from it (Figure 8); one panel for each row."""
    data = data_of(table)
    own = data[data["group"].isin(families_of(data))]
    rows: dict[str, Cell] = dict(zip(own["row"], own["cell"], strict=True))
    figure, axes = panels(table, math.ceil(len(rows) / 2), 2, height=1.5)
    for ax in axes.flat[len(rows) :]:
        ax.remove()
    for ax, (row, cell) in zip(axes.flat, rows.items(), strict=False):
        schedule, steps = p_of(cell), cell.spec.total_steps
        gate, t = Gate(schedule, steps, seed=0), _some(steps, DOTS)
        ax.plot(t / steps, [schedule(s, steps) for s in t.tolist()], color="black")
        ax.plot(t / steps, gate.steps.numpy()[t], "o", color="C1", alpha=0.6, markersize=3, mew=0, clip_on=False)
        ax.set_title(row, loc="left")
        ax.set_title(f"Δη = {gate.mean:.3f}, of this gate {gate.share(steps):.3f}", loc="right", fontsize="small")
        ax.set(ylabel="p(t), X_t", xlim=(0, 1), ylim=(-0.05, 1.05))
    for ax in figure.axes[-2:]:
        ax.set_xlabel(TIME_LABEL)
    dots = key(f"X_t of seed 0, at {len(t)} of the {steps:,} steps", color="C1", marker="o", linestyle="none")
    legend(figure, [key("p(t)", color="black"), dots])
    return figure


def looks_of(data: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The look of each label, from dark to light; a label has the same look in all families."""
    labels = dict.fromkeys(label for family in families_of(data) for label in _labelled(data, family)[0])
    shades = map(mpl.colors.to_hex, mpl.colormaps["cividis"](np.linspace(0, 0.85, len(labels))))
    return {label: look_of(i) | {"color": next(shades)} for i, label in enumerate(labels)}


def draw_schedules(ax: Axes, data: pd.DataFrame, family: str, looks: dict[str, dict[str, Any]]) -> str:
    """Draw p(t) of each row of the family over t/T, as a staircase of its steps; return the title of the panel."""
    cells, parameter = _labelled(data, family)
    for i, (label, cell) in enumerate(cells.items()):
        schedule, steps = p_of(cell), cell.spec.total_steps
        t = _some(steps, 500)
        p = [schedule(s, steps) for s in t.tolist()]
        at = [len(t) * (2 * i + 1) // (2 * len(cells))]  # one marker on each line, at different t
        ax.plot([*t / steps, 1], [*p, p[-1]], drawstyle="steps-post", label=label, markevery=at, **looks[label])
    ax.set(xlabel=TIME_LABEL, xlim=(0, 1), ylim=(-0.03, 1.03))
    return joined(family, f"{parameter} = ..." if parameter else "")


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
