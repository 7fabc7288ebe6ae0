"""Test error over the cost Δη, or over another number of the config."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rst.experiments.report.figures.axis import (
    PARAMETERS,
    abscissa,
    axis_label,
    is_wide,
    parameter_at_one_cost,
)
from rst.experiments.report.figures.panels import (
    ERROR_LABEL,
    apart,
    data_of,
    families_of,
    has_runs,
    joined,
    key,
    key_of_paper,
    legend,
    look_of,
    panels,
)
from rst.experiments.report.figures.points import ROOM, draw_levels, draw_named, draw_points
from rst.experiments.tables.expansion import Table

ENDS = "s^hd"
"""Hollow markers for the rows without a family: SGD and SAM, the ends of every line."""
LARGEST = 34.0
"""The area of the marker of the longest training, in square points. Other areas are proportional to the passes."""
SIDES = (-0.06, 1.06)
"""The limits of an x axis of Δη or of a parameter: both lie in [0, 1]."""
BESIDE = 0.018
"""The least distance in x between points: those at the same Δη are moved to stand side by side."""


@dataclass(frozen=True)
class Plot:
    """What all panels of a figure share: its lines of data, its families and their looks."""

    table: Table
    data: pd.DataFrame
    """`data_of` the table, with the column ``x``."""
    over_cost: list[str]
    """The families whose rows differ in Δη, or in the ``x`` that the table chooses. They share a panel."""
    at_one_cost: dict[str, str]
    """The parameter of every other family. Each has a panel of its own, over that parameter."""
    ends: dict[str, str]
    """The marker of each row without a family, if other rows have one."""
    looks: dict[str, dict[str, Any]]
    """Colour and marker of each family."""

    @property
    def columns(self) -> list[str]:
        """The panels of one network and data set: "", for the families over Δη, and those at one cost."""
        return [*([""] if self.over_cost or not self.at_one_cost else []), *self.at_one_cost]


def error_over_cost(table: Table) -> Figure:
    """Test error over Δη, as a line from SGD through the rows of a family (group) to SAM (Figures 2, 4, 6).

    Families share a panel, so that they can be compared at equal cost. A family whose rows all have the same Δη is
    drawn over its parameter instead, with SGD and SAM as horizontal lines. The area of a marker is proportional to the
    passes over a batch.
    """
    plot = _plot(table)
    figure = _draw(plot, lines=True)
    families = [name for name in (*plot.over_cost, *plot.at_one_cost) if name]
    entries = [key(name, linewidth=1.2, **plot.looks[name]) for name in families]
    legend(figure, [*entries, *_keys_of_ends(plot), *_keys_of_areas(plot.data), *key_of_paper(plot.data)])
    return figure


def summary(table: Table) -> Figure:
    """Test error over Δη, with a marker for each family, or without families a name beside each point (Figure 7).

    Points that have the same Δη stand side by side.
    """
    plot = _plot(table)
    figure = _draw(plot, lines=False)
    names = [name for name in (*plot.over_cost, *plot.at_one_cost) if name]
    entries = [key(name, linestyle="none", **plot.looks[name]) for name in names]
    legend(figure, [*entries, *_keys_of_ends(plot), *key_of_paper(plot.data)])
    return figure


def _plot(table: Table) -> Plot:
    data = data_of(table)
    data = data.assign(x=abscissa(table, data), area=LARGEST * data["passes"] / data["passes"].max())
    families = families_of(data)
    parameters = {name: parameter_at_one_cost(data[data["group"] == name]) for name in families if not table.x}
    at_one_cost = {name: parameter for name, parameter in parameters.items() if parameter and name}
    rows = data.loc[data["group"] == "", "row"].unique() if families != [""] else []
    looks = {name: look_of(i) | {"linestyle": "-"} for i, name in enumerate(families)}
    looks = {name: {key: look[key] for key in ("color", "marker")} for name, look in looks.items()}
    over_cost = [name for name in families if name not in at_one_cost]
    return Plot(table, data, over_cost, at_one_cost, dict(zip(rows, ENDS, strict=False)), looks)


def _draw(plot: Plot, lines: bool) -> Figure:
    """All panels: a row for each network and data set.

    Without a family at one cost, data sets stand side by side.
    """
    data, columns = plot.data, plot.columns
    networks, datasets = list(data["network"].unique()), list(data["dataset"].unique())
    if len(columns) == 1:
        figure, axes = panels(
            len(networks), len(datasets), sharex=True, height=2.6 if len(networks) + len(datasets) > 2 else 3.6
        )
        places = [
            (axes[j, k], network, dataset, columns[0])
            for j, network in enumerate(networks)
            for k, dataset in enumerate(datasets)
        ]
    else:
        ratios = [1.0 if name else 1 + 0.8 * (len(columns) - 1) for name in columns]
        kinds = [(network, dataset) for network in networks for dataset in datasets]
        figure, axes = panels(len(kinds), len(columns), height=2.4, width_ratios=ratios, sharex="col")
        places = [(axes[i, k], *kind, name) for i, kind in enumerate(kinds) for k, name in enumerate(columns)]
    for ax, network, dataset, name in places:
        own = data[(data["network"] == network) & (data["dataset"] == dataset)]
        own = own[own["group"].isin(["", *([name] if name else plot.over_cost)])]
        first = ax.get_subplotspec().is_first_col()
        if has_runs(ax, own, plot.table):
            _draw_panel(ax, plot, own, name, lines)
        place = joined(network, dataset, by="\n" if len(columns) > 2 else ", ")
        ax.set_title(name if name and not first else place, loc="left")
        ax.set_ylabel(ERROR_LABEL if first else "")
        if ax.get_subplotspec().is_last_row():
            _set_x(ax, plot, name, lines)
    return figure


def _set_x(ax: Axes, plot: Plot, name: str, lines: bool) -> None:
    if name:
        parameter = plot.at_one_cost[name]
        ax.set(xlabel=PARAMETERS.get(parameter, parameter), xlim=SIDES, xticks=[0, 0.5, 1])
    elif plot.table.x:
        ax.set_xlabel(axis_label(plot.table))
        if is_wide(plot.data["x"].tolist()):
            ax.set_xscale("log")
    else:
        named = plot.over_cost == [""] and not lines
        ax.set(xlabel=axis_label(plot.table), xlim=(SIDES[0], SIDES[1] + ROOM * named), xticks=np.linspace(0, 1, 6))


def _draw_panel(ax: Axes, plot: Plot, own: pd.DataFrame, name: str, lines: bool) -> None:
    no_x = own["x"].isna() if plot.table.x else pd.Series(False, own.index)
    is_level = own["row"].isin(plot.ends) if name or plot.table.x else no_x
    is_level |= no_x
    if name:
        parameter = plot.at_one_cost[name]
        own = own.assign(x=[cell.spec.schedule.options.get(parameter, float("nan")) for cell in own["cell"]])
    points = own[~is_level]
    if plot.over_cost == [""] and not lines:
        draw_named(ax, points)
        return
    ends = points[points["row"].isin(plot.ends) & (points["group"] == "")]
    inner = points[points["group"].isin(plot.looks)].sort_values("x", kind="stable")
    at = dict(zip(inner.index, inner["x"] if plot.table.x else apart(inner["x"].tolist(), BESIDE), strict=True))
    for family in [name] if name else plot.over_cost:
        rows, look = inner[inner["group"] == family], plot.looks[family]
        rows = rows.assign(x=rows.index.map(at).astype(float))
        if lines:
            line = pd.concat([ends, rows] if family else [rows]).sort_values("x")
            ax.plot(line["x"], line["mean"], color=look["color"], linewidth=1.1, alpha=0.7)
        draw_points(ax, rows, areas=lines, **look)
    draw_levels(ax, own[is_level], points)
    for row, shape in plot.ends.items():
        draw_points(ax, ends[ends["row"] == row], "black", shape, areas=lines, face="white")


# ---------------------------------------------------------------------------------------------------------- legends


def _keys_of_ends(plot: Plot) -> list[Line2D]:
    look = {"color": "black", "mfc": "white", "linestyle": "none"}
    return [key(row, marker=marker, **look) for row, marker in plot.ends.items()] if "" in plot.columns else []


def _keys_of_areas(data: pd.DataFrame) -> list[Line2D]:
    """Entries for the fewest and the most passes, with markers of their areas."""
    known = data.dropna(subset="area").sort_values("area")
    return [
        key(f"area: {passes:,.0f} passes", color="0.6", marker="o", markersize=area**0.5, linestyle="none")
        for passes, area in known[["passes", "area"]].iloc[[0, -1] if len(known) else []].to_numpy()
    ]
