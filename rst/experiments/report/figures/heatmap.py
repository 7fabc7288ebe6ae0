"""Test error over p and the regularisation of G-RST, as a grid of colours."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rst.experiments.report.figures.panels import ERROR_LABEL, data_of, families_of, has_runs, joined, panels
from rst.experiments.tables.expansion import Table

LUMINANCE = (0.299, 0.587, 0.114)
"""How much red, green and blue add to the brightness of a colour: it decides between black and white letters."""


def heatmap(table: Table) -> Figure:
    """Test error over p and γ_rst/ρ = p c (Figure 9), one panel for each network and data set."""
    data = data_of(table)
    grid = data["group"].isin(families_of(data))
    networks, datasets = data["network"].unique(), data["dataset"].unique()
    figure, axes = panels(table, len(networks), len(datasets), height=3.4)
    for (j, network), (k, dataset) in itertools.product(enumerate(networks), enumerate(datasets)):
        ax, here = axes[j, k], (data["network"] == network) & (data["dataset"] == dataset)
        if has_runs(ax, data[here & grid], table):
            _draw_grid(ax, data[here & grid])
        ends = [f"{end.row}: {end.mean:.2f}" for end in data[here & ~grid & data["mean"].notna()].itertuples()]
        ax.set_title(joined(joined(network, dataset), *ends, by="; "), loc="left")
        ax.set(xlabel="p, probability of a sharp step [1]", ylabel="γ_rst = p γ [ρ]")
    return figure


def _draw_grid(ax: Axes, own: pd.DataFrame) -> None:
    own = own.assign(p=own["p"].round(6), gamma_rst=own["gamma_rst"].round(6))
    means = own.pivot(index="gamma_rst", columns="p", values="mean")
    low, middle, high = own["mean"].quantile([0, 0.5, 1])
    top = min(high, low + 5 * (middle - low))  # one diverged training must not take the colours of the others
    mesh = ax.pcolormesh(means, cmap="cividis_r", vmin=low, vmax=top, edgecolor="white", linewidth=1)
    ax.figure.colorbar(mesh, ax=ax, label=ERROR_LABEL, extend="max" if top < high else "neither")
    for line in own.itertuples():
        x, y = means.columns.get_loc(line.p), means.index.get_loc(line.gamma_rst)
        count = f"n = {line.n}/{line.planned}"
        if line.n == 0:
            ax.add_patch(Rectangle((x, y), 1, 1, facecolor="white", edgecolor="0.7", hatch="///", linewidth=0))
            texts, color, box = [count], "black", {"facecolor": "white", "edgecolor": "none", "pad": 2}
        else:
            spread = [f"± {line.std:.2f}"] if line.n > 1 else []
            texts, box = [f"{line.mean:.2f}", *spread, *([count] if line.n < line.planned else [])], None
            color = "black" if np.dot(mesh.to_rgba(line.mean)[:3], LUMINANCE) > 0.5 else "white"
        ax.text(x + 0.5, y + 0.5, "\n".join(texts), ha="center", va="center", fontsize="small", color=color, bbox=box)
    ax.set_xticks(np.arange(len(means.columns)) + 0.5, [f"{p:g}" for p in means.columns])
    ax.set_yticks(np.arange(len(means.index)) + 0.5, [f"{gamma:g}" for gamma in means.index])
    ax.tick_params(length=0)
    ax.grid(False)
