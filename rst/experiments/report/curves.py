"""How runs went, epoch by epoch, as one figure: error, loss, the gap to the perturbed loss, the gate and the time."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rst.experiments.errors import InputError
from rst.experiments.files import writing
from rst.experiments.report.figures.saving import STYLE, save
from rst.experiments.runs.record import Record

PANELS = (
    ("test error [%]", "epoch"),
    ("training loss", "epoch"),
    ("perturbed loss - loss, of sharp steps", "epoch"),
    ("sharp steps [%]", "epoch"),
    ("test error [%]", "time of training [s]"),
)
"""What the panels show, each as the labels of its axes."""

Line = dict[str, Any]
"""A line of ``metrics.jsonl``."""


def draw(groups: Mapping[str, Sequence[Record]]) -> Figure:
    """The curves of groups of runs, each under its label: the mean over its runs, and from the least to the most.

    The gap is that of the sharp steps of an epoch, before decay; the gate is the share of sharp steps in an epoch and,
    dotted, p(t) at the end of it. In a legend stands the test error of the latest epoch that all runs of a group have.

    Raises:
        InputError: a run has no epoch on record, or a file of it is damaged.
    """
    with mpl.style.context(STYLE):
        figure = Figure(figsize=(10.5, 6.2))
        axes = list(figure.subplots(2, 3).flat)
        entries = []
        for index, (label, records) in enumerate(groups.items()):
            look: Line = {"color": f"C{index}", "linestyle": ("-", "--", "-.", ":")[index // 7 % 4]}
            runs = [_epochs(record) for record in records]
            for ax, (x, y) in zip(axes, _curves(runs), strict=False):
                _band(ax, x, y, look)
            p = _column(runs, "p").mean(0)
            if not np.isnan(p).all():
                axes[3].plot(_numbers(runs), 100 * p, color=look["color"], linestyle=":", linewidth=1)
            entries.append(Line2D([], [], label=f"{label}\n{_latest(runs)}", **look))
        for ax, (what, over) in zip(axes, PANELS, strict=False):
            ax.set_title(what)
            ax.set_xlabel(over)
        axes[3].set_ylim(-3, 103)
        axes[5].set_axis_off()
        axes[5].legend(handles=entries, loc="upper left", borderaxespad=0)
    return figure


def write(groups: Mapping[str, Sequence[Record]], output: Path) -> list[Path]:
    """Write the figure as PNG and SVG; ``output`` is the path of both without what follows the last dot.

    Raises:
        InputError: the figure cannot be drawn, or a file cannot be written.
    """
    figure = draw(groups)
    files = [output.with_name(f"{output.name}.{kind}") for kind in ("png", "svg")]
    for file in files:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            save(figure, file)
    return files


def _epochs(record: Record) -> list[Line]:
    lines = record.metrics
    if not lines:
        raise InputError(f"{record.id} has no epoch on record yet: wait for its first one.")
    return lines


def _numbers(runs: Sequence[Sequence[Line]]) -> np.ndarray:
    """The numbers of the epochs that all runs have, from 1."""
    return np.arange(1, min(map(len, runs)) + 1)


def _column(runs: Sequence[Sequence[Line]], key: str) -> np.ndarray:
    """A metric of the epochs that all runs have, [runs, epochs]; NaN where an epoch has none."""
    length = min(map(len, runs))
    return np.array([[math.nan if (v := line.get(key)) is None else v for line in run[:length]] for run in runs], float)


def _curves(runs: Sequence[Sequence[Line]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each panel the numbers along x, [epochs], and the values of every run, [runs, epochs]."""
    epochs, error = _numbers(runs), _column(runs, "test_error")
    steps, sharp = (np.diff(_column(runs, key), prepend=0.0) for key in ("step", "sharp_steps"))
    return [
        (epochs, error),
        (epochs, _column(runs, "train_loss")),
        (epochs, _column(runs, "loss_gap")),
        (epochs, 100 * sharp / steps),
        (_column(runs, "train_seconds").mean(0), error),
    ]


def _band(ax: Axes, x: np.ndarray, values: np.ndarray, look: dict[str, Any]) -> None:
    """The mean of the runs that have a value, and behind it what lies between the least and the most of them."""
    known = ~np.isnan(values).all(0)  # Not every epoch is scored, and not every one has a sharp step.
    x, values = x[known], values[:, known]
    if not len(x):
        return
    # A run of one epoch would not show as a line.
    ax.plot(x, np.nanmean(values, 0), **look, marker="o" if len(x) == 1 else None)
    if len(values) > 1:
        ax.fill_between(x, np.nanmin(values, 0), np.nanmax(values, 0), color=look["color"], alpha=0.2, linewidth=0)


def _latest(runs: Sequence[Sequence[Line]]) -> str:
    """The test error of the latest epoch that is scored in all runs, in words."""
    error = _column(runs, "test_error")
    scored = np.flatnonzero(~np.isnan(error).any(0))
    if not len(scored):
        return "not scored yet"
    last = error[:, scored[-1]]
    spread = f" ± {last.std(ddof=1):.2f} % (n = {len(last)})" if len(last) > 1 else " %"
    return f"{last.mean():.2f}{spread} after epoch {scored[-1] + 1}"
