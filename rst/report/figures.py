"""Figures of results, in one look; rows are told apart by marker too, for readers in grey."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from rst.experiments.sweep import Table
from rst.report.tables import over_seeds, records

STYLE = Path(__file__).with_name("style.mplstyle")
MARKERS = "os^DvPX"


def error_over_cost(table: Table) -> Figure:
    """Test error against realised extra cost Δη: every run, and each row's mean ± one standard deviation."""
    means, runs = over_seeds(table), records(table.cells)
    figure, axes = plt.subplots()
    for i, row in enumerate(table.rows):
        own, mean = runs[runs["row"] == row], means.loc[row]
        look: dict[str, Any] = {"color": f"C{i}", "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
        axes.plot(own["extra_propagations_realised"], own["test_error"], alpha=0.35, markersize=4, **look)
        axes.errorbar(
            mean["extra_propagations_realised"],
            mean["test_error_mean"],
            yerr=mean["test_error_std"],
            markersize=9,
            capsize=4,
            label=f"{row} (n = {mean['n']:.0f})",
            **look,
        )
    axes.set(xlabel="Extra passes a step, Δη (realised)", ylabel="Test error [%]", title=table.title)
    axes.set_xlim(-0.08, 1.08)
    axes.legend()
    return figure


def write(table: Table, folder: Path) -> list[Path]:
    """Write the table's figure as PNG and SVG; the files."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    files = [figures / f"{table.name}.png", figures / f"{table.name}.svg"]
    with plt.style.context(STYLE):
        figure = error_over_cost(table)
        figure.savefig(files[0])
        figure.savefig(files[1], metadata={"Date": None})  # so that equal results are equal files
        plt.close(figure)
    return files
