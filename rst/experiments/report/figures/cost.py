"""Test error and training time over the cost Δη."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rst.experiments.report.figures.panels import (
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
from rst.experiments.report.figures.schedules import draw_schedules, looks_of
from rst.experiments.tables.expansion import Table

ENDS = "s^hd"
"""Hollow markers for the rows without a family: SGD and SAM, the ends of every line."""
LARGEST = 70.0
"""The area of the marker of the longest training, in square points. Other areas are proportional to training time."""
PARAMETERS = {"a": "a, p in the first half [1]", "b": "b, p at the first step [1]"}
"""The axis labels of parameters that do not change Δη."""
ASIDE = 0.04
"""The distance in x between families that have the same Δη."""
SIDES = (-0.06, 1.06)
"""The limits of the x axis: Δη and all parameters lie in [0, 1]."""


def error_over_cost(table: Table) -> Figure:
    """Test error over Δη, as a line from SGD through the rows of a family (group) to SAM (Figures 2, 4, 6).

    A family whose rows all have the same Δη is drawn over its parameter instead, with SGD and SAM as horizontal lines.
    Each family and network has its own row of panels, since the errors of networks are far apart. The area of a marker
    is proportional to the training time.
    """
    data = data_of(table)
    families, networks, datasets = families_of(data), data["network"].unique(), data["dataset"].unique()
    ends = _markers_of_ends(data)
    data["area"] = LARGEST * data["train_seconds"] / data["train_seconds"].max()
    figure, axes = panels(table, len(families) * len(networks), len(datasets), height=1.5)
    looks = [look_of(j) for j in range(len(networks))]
    for (i, family), (j, network), (k, dataset) in itertools.product(*map(enumerate, (families, networks, datasets))):
        ax, last = axes[i * len(networks) + j, k], j == len(networks) - 1
        own = data[(data["network"] == network) & (data["dataset"] == dataset) & data["group"].isin(["", family])]
        parameter = _parameter_at_one_cost(own[own["group"] == family])
        if has_runs(ax, own, table):
            _draw_line(ax, own, parameter, ends, **looks[j])
        ax.set_title(joined(family, dataset) if j == 0 else "", loc="left")
        ax.set_ylabel("" if k else joined(network, ERROR_LABEL, by="\n"))
        ax.set_xlabel("" if not last else PARAMETERS.get(parameter, parameter) if parameter else COST_LABEL)
        ax.set(xlim=SIDES, xticks=np.linspace(0, 1, 11))
        ax.tick_params(labelbottom=last)
    entries = [key(network, **look) for network, look in zip(networks, looks, strict=True) if network]
    legend(figure, [*entries, *_keys_of_ends(ends), *_keys_of_areas(data), *key_of_paper(data)])
    return figure


def _parameter_at_one_cost(rows: pd.DataFrame) -> str | None:
    """The parameter of a family whose rows all have the same Δη by Table 2; else None."""
    return parameter_of(rows["cell"]) if rows["extra_propagations_closed_form"].round(9).nunique() == 1 else None


def _draw_line(
    ax: Axes, own: pd.DataFrame, parameter: str | None, ends: dict[str, str], color: str, marker: str, linestyle: str
) -> None:
    own = own.assign(x=own[COST], marker=[ends.get(row, marker) for row in own["row"]])
    is_level = own["row"].isin(ends) & (parameter is not None)
    if parameter:
        own["x"] = [cell.spec.schedule.options.get(parameter, SIDES[1]) for cell in own["cell"]]
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
        artist.set_clip_on(False)  # points and lines may lie on the border


def _markers_of_ends(data: pd.DataFrame) -> dict[str, str]:
    """The marker of each row without a family, if other rows have one."""
    rows = data.loc[data["group"] == "", "row"].unique() if any(data["group"]) else []
    return dict(zip(rows, ENDS, strict=False))


def _keys_of_ends(ends: dict[str, str]) -> list[Line2D]:
    return [key(row, color="black", marker=marker, mfc="white", linestyle="none") for row, marker in ends.items()]


def _keys_of_areas(data: pd.DataFrame) -> list[Line2D]:
    """Entries for the shortest and the longest training time, with markers of their areas."""
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
    """Test error over Δη, with a marker for each family, or for each row if there are no families (Figure 7).

    Families whose rows all have the same Δη are drawn side by side, and the legend gives that Δη.
    """
    data = data_of(table)
    ends, networks, datasets = _markers_of_ends(data), data["network"].unique(), data["dataset"].unique()
    data["series"] = data["group"].where(data["group"] != "", data["row"])
    series = {name: own for name, own in data.groupby("series", sort=False) if name not in ends}
    looks = {name: look_of(i) for i, name in enumerate(series)}
    looks |= {row: {"color": "black", "marker": marker} for row, marker in ends.items()}
    looks = {name: look | {"mfc": "white", "linestyle": "none"} for name, look in looks.items()}
    beside = [name for name, own in series.items() if _parameter_at_one_cost(own)]
    shift = {name: ASIDE * (i - (len(beside) - 1) / 2) for i, name in enumerate(beside)}
    figure, axes = panels(table, len(networks), len(datasets), height=3.4)
    for (j, network), (k, dataset) in itertools.product(enumerate(networks), enumerate(datasets)):
        ax, own = axes[j, k], data[(data["network"] == network) & (data["dataset"] == dataset)]
        if has_runs(ax, own, table):
            for name, look in looks.items():
                row = own[own["series"] == name]
                x = row[COST] + shift.get(name, 0)
                ax.errorbar(x, row["mean"], row["std"], elinewidth=0.7, zorder=3, **look)
            ax.plot(own[COST], own["paper_mean"], zorder=4, **PAPER)
        ax.set_title(joined(network, dataset), loc="left")
        ax.set(xlabel=COST_LABEL, ylabel="" if k else ERROR_LABEL, xlim=SIDES)
    labels = {name: f"{name}, Δη = {series[name][COST].mean():.2g}" if name in beside else name for name in looks}
    entries = [key(labels[name], **look) for name, look in looks.items()]
    legend(figure, [*entries, *key_of_paper(data)])
    return figure


def extra_time(table: Table) -> Figure:
    """The schedules (A), and the measured extra training time over Δη (B); in theory the two are equal (Figure 1)."""
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
        for i, ((network, dataset), own) in enumerate(data.groupby(["network", "dataset"], sort=False)):
            seconds = own["train_seconds"]
            of_sam = seconds[own["p"] == 1].mean() - seconds[own["p"] == 0].mean()
            look = look_of(i) | {"mfc": "none", "linestyle": "none"}
            spread = own["train_seconds_std"] / of_sam
            right.errorbar(own[COST], own["relative_extra_time"], spread, label=joined(network, dataset), **look)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
    left.legend(ncols=3, **below)
    if right.lines:
        right.legend(ncols=2, **below)
    return figure
