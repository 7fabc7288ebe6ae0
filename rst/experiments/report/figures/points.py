"""Points of error in a panel, levels between which they lie, and names beside them."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from rst.experiments.report.figures.panels import PAPER, SOFT, apart, formula, look_of

ROOM = 0.4
"""How far an axis of Δη goes on to the right for the names of points."""
FAR = 1.5
"""A level this many ranges of the points above them is named, not drawn."""
GAP = 0.065
"""The height of a line of letters, as a part of the range of errors."""
NEAR: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False}


def draw_points(
    ax: Axes, rows: pd.DataFrame, color: str, marker: str, areas: bool = False, face: str = "", size: float = 13
) -> None:
    """Mean errors with their intervals, and the paper's with them.

    The markers have the area ``size``, or with ``areas`` those of the column ``area``, in square points.
    """
    x, size = rows["x"], rows["area"] if areas else size
    ax.errorbar(x, rows["mean"], rows["half"], fmt="none", ecolor=color, elinewidth=0.8, capsize=0)
    ax.scatter(x, rows["mean"], size, marker=marker, facecolor=face or color, edgecolor=color, linewidth=0.9, zorder=3)
    ax.plot(x, rows["paper_mean"], color=color, zorder=4, **PAPER)


def draw_levels(ax: Axes, rows: pd.DataFrame, points: pd.DataFrame) -> None:
    """A horizontal line for each row, with its interval as a band and its name at the right end.

    A row far above the points is named at the border instead: its line would press the points into one.
    """
    low, high = _range(points)
    near = NEAR | {"xycoords": ax.get_yaxis_transform(), "va": "center", "fontsize": "small", "color": SOFT}
    shown: dict[str, float] = {}
    for line in rows[rows["mean"].notna()].itertuples():
        if line.mean > high + FAR * (high - low):
            corner = near | {"xycoords": "axes fraction", "va": "top"}
            ax.annotate(f"{formula(line.row)}\n{line.mean:.1f} ↑", (1, 1), (3, 0), **corner)
            continue
        shown[line.row] = line.mean
        ax.axhline(line.mean, color=SOFT, linewidth=0.9, linestyle="--", zorder=1)
        if line.half == line.half:
            ax.axhspan(line.mean - line.half, line.mean + line.half, color=SOFT, alpha=0.1, linewidth=0, zorder=0)
    bottom, top = ax.get_ylim()
    for row, place in zip(shown, apart(list(shown.values()), GAP * (top - bottom)), strict=True):
        ax.annotate(formula(row), (1, place), (3, 0), **near)


def draw_named(ax: Axes, points: pd.DataFrame) -> None:
    """Each row in its own colour, with name, error and time beside its point.

    SAM's interval is a band behind them, which names the cheapest row that lies in it.
    """
    points = points[points["mean"].notna()]
    for i, (_, own) in enumerate(points.groupby("row", sort=False)):
        draw_points(ax, own, look_of(i)["color"], look_of(i)["marker"], size=34)
    sam = points[(points["p"] == 1) & (points["c"] == 1) & (points["variant"] == "sam") & points["half"].notna()]
    for line in sam.itertuples():
        color, top = look_of(list(points["row"].unique()).index(line.row))["color"], line.mean + line.half
        ax.axhspan(line.mean - line.half, top, color=color, alpha=0.13, linewidth=0, zorder=0)
        said = f"error of {formula(line.row)}, 95 % interval"
        for other in points[(points["x"] < line.x) & (points["mean"] <= top)].sort_values("x")[:1].itertuples():
            said += f":\n{formula(other.row)} lies in it at\n{100 * other.x / line.x:.0f} % of the extra passes"
        ax.annotate(
            said, (0, top), (6, 3), xycoords=ax.get_yaxis_transform(), va="bottom", color=color, linespacing=1.1, **NEAR
        )
    low, high = _range(points)
    for _, beside in points.groupby(points["x"].round(2)):
        places = apart(beside["mean"].tolist(), GAP * (high - low))
        for line, place in zip(beside.itertuples(), places, strict=True):
            time = f", {line.relative_time:.2f}× time" if line.p and line.relative_time > 0 else ""
            ax.annotate(f"{formula(line.row)}: {line.mean:.1f} %{time}", (line.x, place), (8, 0), va="center", **NEAR)


def _range(points: pd.DataFrame) -> tuple[float, float]:
    """The least and the largest error of the points, with their intervals."""
    half = points["half"].fillna(0)
    return (points["mean"] - half).min(), (points["mean"] + half).max()
