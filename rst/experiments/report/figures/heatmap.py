"""Test error over p and the regularisation of G-RST, as a grid of colours."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from rst.experiments.report.figures.panels import (
    ERROR_LABEL,
    PALETTE,
    apart,
    data_of,
    families_of,
    has_runs,
    joined,
    key,
    legend,
    panels,
)
from rst.experiments.tables.expansion import Table

LUMINANCE = (0.299, 0.587, 0.114)
"""How much red, green and blue add to the brightness of a colour: it decides between black and white letters."""
TIMES = 8
"""How many times the lowest error the highest is that has a colour of its own, on a scale of logarithms."""
BEST = PALETTE[1]
"""The outline of the best cell."""


def heatmap(table: Table) -> Figure:
    """Test error over p and γ_rst/ρ = p c (Figure 9), one panel for each network and data set.

    The best cell is outlined; the rows outside the grid, SGD and SAM, are marks on the colour bar.
    """
    data = data_of(table)
    grid = data["group"].isin(families_of(data))
    networks, datasets = data["network"].unique(), data["dataset"].unique()
    figure, axes = panels(len(networks), len(datasets), height=3.8)
    for (j, network), (k, dataset) in itertools.product(enumerate(networks), enumerate(datasets)):
        ax, here = axes[j, k], (data["network"] == network) & (data["dataset"] == dataset)
        if has_runs(ax, data[here & grid], table):
            _draw_grid(ax, data[here & grid], data[here & ~grid & data["mean"].notna()])
        ax.set_title(joined(network, dataset), loc="left")
        ax.set(xlabel="$p$, probability of a sharp step", ylabel=r"$\gamma_{\mathrm{rst}} / \rho = p\, c$")
    frame = {"marker": "s", "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 2, "linestyle": "none"}
    legend(figure, [key("lowest mean", color=BEST, **frame)])
    return figure


def _draw_grid(ax: Axes, own: pd.DataFrame, ends: pd.DataFrame) -> None:
    own = own.assign(p=own["p"].round(6), gamma_rst=own["gamma_rst"].round(6))
    means = own.pivot(index="gamma_rst", columns="p", values="mean")
    shown = pd.concat([own["mean"], ends["mean"]]).dropna().clip(lower=0.01)
    low, high = shown.min(), max(shown.max(), 1.01 * shown.min())
    top = min(high, TIMES * low)  # One training that diverged must not take the colours of the others.
    mesh = ax.pcolormesh(means, cmap="cividis_r", norm=LogNorm(low, top), edgecolor="white", linewidth=1)
    extend = "max" if top < high else "neither"
    bar = ax.figure.colorbar(mesh, ax=ax, label=ERROR_LABEL, extend=extend, pad=0.11)
    ticks = [tick for tick in MaxNLocator(8).tick_values(low, top) if low <= tick <= top]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.minorticks_off()
    _mark(bar, ends, low, top)
    for line in own.itertuples():
        x, y = means.columns.get_loc(line.p), means.index.get_loc(line.gamma_rst)
        count = f"n = {line.n}/{line.planned}"
        if line.n == 0:
            ax.add_patch(Rectangle((x, y), 1, 1, facecolor="white", edgecolor="0.7", hatch="///", linewidth=0))
            texts, color, box = [count], "black", {"facecolor": "white", "edgecolor": "none", "pad": 2}
        else:
            spread = [f"± {line.half:.2f}"] if line.n > 1 else []
            texts, box = [f"{line.mean:.2f}", *spread, *([count] if line.n < line.planned else [])], None
            color = "black" if np.dot(mesh.to_rgba(line.mean)[:3], LUMINANCE) > 0.5 else "white"
        ax.text(x + 0.5, y + 0.5, "\n".join(texts), ha="center", va="center", fontsize="small", color=color, bbox=box)
    best = own.loc[own["mean"].idxmin()]
    corner = means.columns.get_loc(best["p"]), means.index.get_loc(best["gamma_rst"])
    ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=BEST, linewidth=2.5, zorder=3, clip_on=False))
    ax.set_xticks(np.arange(len(means.columns)) + 0.5, [f"{p:g}" for p in means.columns])
    ax.set_yticks(np.arange(len(means.index)) + 0.5, [f"{gamma:g}" for gamma in means.index])
    ax.tick_params(length=0)
    ax.grid(False)


def _mark(bar: Colorbar, ends: pd.DataFrame, low: float, top: float) -> None:
    """A triangle for each row at its error, on the left of the colour bar; beyond the colours, at their end."""
    inside = [min(max(error, low), top) for error in ends["mean"]]
    places = np.exp(apart([math.log(error) for error in inside], 0.05 * math.log(top / low)))
    near: dict[str, Any] = {
        "xycoords": bar.ax.get_yaxis_transform(),
        "ha": "right",
        "va": "center",
        "annotation_clip": False,
    }
    for line, at, place in zip(ends.itertuples(), inside, places, strict=True):
        bar.ax.plot(
            [-0.15], [at], ">", color="black", markersize=5, clip_on=False, transform=bar.ax.get_yaxis_transform()
        )
        text = f"{line.row} {line.mean:.2f}"
        bar.ax.annotate(text, (0, place), (-9, 0), textcoords="offset points", fontsize="small", **near)
