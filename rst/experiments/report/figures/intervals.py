"""The errors of a table as intervals, ours and the paper's."""

import itertools

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rst.experiments.report.figures.panels import (
    PALETTE,
    PAPER,
    data_of,
    formula,
    has_runs,
    joined,
    key,
    legend,
    panels,
)
from rst.experiments.report.tables import METRICS
from rst.experiments.tables.expansion import Table

LINE = 0.19
"""The height of a row, in inches."""
BELOW = 0.25
"""How far the paper's interval is below ours, in rows."""
PAPERS = PAPER | {"color": PALETTE[1]}


def intervals(table: Table) -> Figure:
    """Mean test error of each row with its 95 % t interval, and the paper's; a panel for each network and data set."""
    data = data_of(table)
    networks, datasets = list(data["network"].unique()), list(data["dataset"].unique())
    counts = [max(len(_rows(data, network, dataset)) for dataset in datasets) for network in networks]
    figure, axes = panels(
        len(networks), len(datasets), height=LINE * sum(counts) / len(counts) + 0.8, height_ratios=counts
    )
    for (j, network), (k, dataset) in itertools.product(enumerate(networks), enumerate(datasets)):
        ax, own = axes[j, k], _rows(data, network, dataset)
        if has_runs(ax, own, table):
            _draw_rows(ax, own)
        names = own["row"] + (" (" + own["group"] + ")").where(
            own.duplicated("row", keep=False) & (own["group"] != ""), ""
        )
        ax.set_yticks(range(len(own)), [formula(name) for name in names] if k == 0 else [])
        ax.set_ylim(len(own) - 0.4, -0.6)
        ax.set_title(joined(network, dataset, by="\n" if len(datasets) > 1 else ", "), loc="left")
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(formula(METRICS[table.metrics[0]]) if j == len(networks) - 1 else "")
    if data["paper_mean"].notna().any():
        legend(figure, [key("ours", color=PALETTE[0], marker="o", linestyle="none"), key("paper", **PAPERS)])
    return figure


def _rows(data: pd.DataFrame, network: str, dataset: str) -> pd.DataFrame:
    return data[(data["network"] == network) & (data["dataset"] == dataset)]


def _draw_rows(ax: Axes, own: pd.DataFrame) -> None:
    y = pd.Series(range(len(own)), own.index, dtype=float)
    ax.errorbar(own["mean"], y, xerr=own["half"], fmt="o", color=PALETTE[0], markersize=4, elinewidth=1.3)
    ax.errorbar(own["paper_mean"], y + BELOW, xerr=own["paper_half"], elinewidth=0.9, **PAPERS)
    if (own["mean"].dropna() >= 0).all() and ax.get_xlim()[0] < 0:
        ax.set_xlim(left=0)  # A t interval may reach below 0, an error does not.
    best = own["mean"].idxmin()
    ax.axvline(own.loc[best, "mean"], color="0.6", linewidth=0.7, linestyle=":", zorder=0)
