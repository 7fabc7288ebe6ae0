"""Training time over the cost Δη."""

from matplotlib.figure import Figure

from rst.experiments.report.figures.axis import COST_LABEL, REALISED
from rst.experiments.report.figures.cost import SIDES
from rst.experiments.report.figures.panels import data_of, families_of, has_runs, joined, look_of, panels
from rst.experiments.report.figures.schedules import draw_schedules
from rst.experiments.tables.expansion import Table

JITTER = 0.02
"""How far networks are moved against each other, along x and y: else their points would cover each other."""


def extra_time(table: Table) -> Figure:
    """The schedules (A), and the measured extra time over the realised Δη (B), in theory the line x = y (Figure 1)."""
    data = data_of(table)
    figure, axes = panels(1, 2, height=3.4, width_ratios=[2, 3])
    left, right = axes[0]
    titles = [draw_schedules(left, data, family) for family in families_of(data)]
    left.set_title("A  " + "; ".join(titles), loc="left")
    left.set_ylabel("$p(t)$")
    right.set_title("B  extra time, measured", loc="left")
    right.set(xlabel=f"{COST_LABEL}, realised", ylabel="extra training time / that of SAM", xlim=SIDES)
    if not has_runs(right, data, table, value="relative_extra_time"):
        return figure
    right.axline((0, 0), slope=1, color="0.6", linewidth=1, label="$x = y$", zorder=1)
    series = list(data.groupby(["network", "dataset"], sort=False))
    for i, ((network, dataset), own) in enumerate(series):
        seconds = own["train_seconds"]
        of_sam = seconds[own["p"] == 1].mean() - seconds[own["p"] == 0].mean()
        look = look_of(i) | {"mfc": "none", "linestyle": "none", "markersize": 4.5}
        shift = JITTER * (i - (len(series) - 1) / 2)  # along x = y, from which the distance of a point must stay
        x, y, half = own[REALISED] + shift, own["relative_extra_time"] + shift, own["half_seconds"] / of_sam
        right.errorbar(x, y, half, elinewidth=0.8, label=joined(network, dataset), **look)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
