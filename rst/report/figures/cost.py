"""What the cost Δη buys, in test error, and what it takes, in time."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rst.experiments.sweep import Table
from rst.report.figures.panels import (
    COST,
    COST_LABEL,
    ERROR_LABEL,
    PAPER,
    data_of,
    families_of,
    has_runs,
    joined,
    key,
    key_of_paper,
    legend,
    look_of,
    panels,
    parameter_of,
)
from rst.report.figures.schedules import draw_schedules, looks_of

ENDS = "s^hd"
"""Markers, white inside, of the rows without a family: SGD and SAM, the ends of every line."""
LARGEST = 70.0
"""Area of the marker of the longest training, in square points; the others are in proportion to their time."""
PARAMETERS = {"a": "a, p in the first half [1]", "b": "b, p at the first step [1]"}
"""Parameters of the families in which they do not change Δη."""
ASIDE = 0.04
"""Distance in x of what would stand at the same Δη."""
SIDES = (-0.06, 1.06)
"""Limits of x: Δη and all parameters lie in [0, 1]."""


def error_over_cost(table: Table) -> Figure:
    """Test error as a line from SGD over the rows of a family (group) to SAM, over Δη (Figures 2, 4, 6).

    Over the family's parameter where all its rows have one Δη: there SGD and SAM are levels. One row of panels a
    family and network (block), as the errors of networks are far apart. The area of a marker is the training time.
    """
    data = data_of(table)
    families, blocks, columns = families_of(data), data["block"].unique(), data["column"].unique()
    ends = _markers_of_ends(data)
    data["area"] = LARGEST * data["train_seconds"] / data["train_seconds"].max()
    figure, axes = panels(table, len(families) * len(blocks), len(columns), height=1.5)
    looks = [look_of(j) for j in range(len(blocks))]
    for (i, family), (j, block), (k, column) in itertools.product(*map(enumerate, (families, blocks, columns))):
        ax, last = axes[i * len(blocks) + j, k], j == len(blocks) - 1
        own = data[(data["block"] == block) & (data["column"] == column) & data["group"].isin(["", family])]
        parameter = _parameter_at_one_cost(own[own["group"] == family])
        if has_runs(ax, own, table):
            _draw_line(ax, own, parameter, ends, **looks[j])
        ax.set_title(joined(family, column) if j == 0 else "", loc="left")
        ax.set_ylabel("" if k else joined(block, ERROR_LABEL, by="\n"))
        ax.set_xlabel("" if not last else PARAMETERS.get(parameter, parameter) if parameter else COST_LABEL)
        ax.set(xlim=SIDES, xticks=np.linspace(0, 1, 11))
        ax.tick_params(labelbottom=last)
    entries = [key(block, **look) for block, look in zip(blocks, looks, strict=True) if block]
    legend(figure, [*entries, *_keys_of_ends(ends), *_keys_of_areas(data), *key_of_paper(data)])
    return figure


def _parameter_at_one_cost(rows: pd.DataFrame) -> str | None:
    """The parameter of a family whose rows have one Δη by Table 2, of which a few steps may be off."""
    return parameter_of(rows["cell"]) if rows["extra_propagations_closed_form"].round(9).nunique() == 1 else None


def _draw_line(
    ax: Axes, own: pd.DataFrame, parameter: str | None, ends: dict[str, str], color: str, marker: str, linestyle: str
) -> None:
    own = own.assign(x=own[COST], marker=[ends.get(row, marker) for row in own["row"]])
    is_level = own["row"].isin(ends) & (parameter is not None)
    if parameter:
        own["x"] = [cell.cfg.schedule.get(parameter, SIDES[1]) for cell in own["cell"]]
    line = own[~is_level].sort_values("x")
    ax.plot(line["x"], line["mean"], color=color, linestyle=linestyle, linewidth=1.2)
    for level in own.loc[is_level, "mean"].dropna():
        ax.axhline(level, color=color, linewidth=0.8, linestyle=":")
    for shape, points in own.groupby("marker"):
        face = "white" if shape in ENDS else color
        ax.errorbar(points["x"], points["mean"], points["std"], fmt="none", ecolor=color, elinewidth=0.9, capsize=2)
        ax.scatter("x", "mean", "area", data=points, marker=shape, facecolor=face, edgecolor=color, zorder=3)
    ax.plot(own["x"], own["paper_mean"], zorder=4, **PAPER)
    for artist in (*ax.lines, *ax.collections):
        artist.set_clip_on(False)  # levels end on the border


def _markers_of_ends(data: pd.DataFrame) -> dict[str, str]:
    """Marker of each row without a family, where the others have one."""
    rows = data.loc[data["group"] == "", "row"].unique() if any(data["group"]) else []
    return dict(zip(rows, ENDS, strict=False))


def _keys_of_ends(ends: dict[str, str]) -> list[Line2D]:
    return [key(row, color="black", marker=marker, mfc="white", linestyle="none") for row, marker in ends.items()]


def _keys_of_areas(data: pd.DataFrame) -> list[Line2D]:
    """The shortest and the longest training time, each beside its marker."""
    known = data.dropna(subset="area").sort_values("area")
    return [
        key(f"area: {_duration(seconds)} of training", color="0.6", marker="o", markersize=area**0.5, linestyle="none")
        for seconds, area in known[["train_seconds", "area"]].iloc[[0, -1] if len(known) else []].to_numpy()
    ]


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def summary(table: Table) -> Figure:
    """Test error against Δη of all rows (Figure 7): families told apart, or the rows where there are no families.

    Families whose rows have one Δη stand side by side, and their entries in the legend say which Δη it is.
    """
    data = data_of(table)
    ends, blocks, columns = _markers_of_ends(data), data["block"].unique(), data["column"].unique()
    data["series"] = data["group"].where(data["group"] != "", data["row"])
    series = {name: own for name, own in data.groupby("series", sort=False) if name not in ends}
    looks = {name: look_of(i) for i, name in enumerate(series)}
    looks |= {row: {"color": "black", "marker": marker} for row, marker in ends.items()}
    looks = {name: look | {"mfc": "white", "linestyle": "none"} for name, look in looks.items()}
    beside = [name for name, own in series.items() if _parameter_at_one_cost(own)]
    shift = {name: ASIDE * (i - (len(beside) - 1) / 2) for i, name in enumerate(beside)}
    figure, axes = panels(table, len(blocks), len(columns), height=3.4)
    for (j, block), (k, column) in itertools.product(enumerate(blocks), enumerate(columns)):
        ax, own = axes[j, k], data[(data["block"] == block) & (data["column"] == column)]
        if has_runs(ax, own, table):
            for name, look in looks.items():
                row = own[own["series"] == name]
                x = row[COST] + shift.get(name, 0)
                ax.errorbar(x, row["mean"], row["std"], elinewidth=0.7, zorder=3, **look)
            ax.plot(own[COST], own["paper_mean"], zorder=4, **PAPER)
        ax.set_title(joined(block, column), loc="left")
        ax.set(xlabel=COST_LABEL, ylabel="" if k else ERROR_LABEL, xlim=SIDES)
    labels = {name: f"{name}, Δη = {series[name][COST].mean():.2g}" if name in beside else name for name in looks}
    entries = [key(labels[name], **look) for name, look in looks.items()]
    legend(figure, [*entries, *key_of_paper(data)])
    return figure


def extra_time(table: Table) -> Figure:
    """Schedules (A), and measured extra time against Δη (B), which in theory are equal (Figure 1)."""
    data = data_of(table)
    figure, axes = panels(table, 1, 2, height=3.2)
    left, right = axes[0]
    looks = looks_of(data)
    titles = [draw_schedules(left, data, family, looks) for family in families_of(data)]
    left.set_title("A  " + "; ".join(titles), loc="left")
    left.set_ylabel("p(t)")
    right.set_title("B  extra time, measured", loc="left")
    right.set(xlabel=COST_LABEL, ylabel="extra training time [that of SAM]", xlim=SIDES)
    if has_runs(right, data, table, value="relative_extra_time"):
        right.axline((0, 0), slope=1, color="0.6", linewidth=1, label="x = y", zorder=1)
        for i, ((block, column), own) in enumerate(data.groupby(["block", "column"], sort=False)):
            seconds = own["train_seconds"]
            of_sam = seconds[own["p"] == 1].mean() - seconds[own["p"] == 0].mean()
            look = look_of(i) | {"mfc": "none", "linestyle": "none"}
            spread = own["train_seconds_std"] / of_sam
            right.errorbar(own[COST], own["relative_extra_time"], spread, label=joined(block, column), **look)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
    left.legend(ncols=3, **below)
    if right.lines:
        right.legend(ncols=2, **below)
    return figure
