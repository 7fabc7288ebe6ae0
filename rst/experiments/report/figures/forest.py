"""The comparisons of claims with their intervals, one line each."""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rst.experiments.report.claims import Compared, Verdict
from rst.experiments.report.figures import STYLE
from rst.experiments.report.figures.panels import PALETTE, WIDTH, key, legend

COLOURS = {"holds": PALETTE[0], "fails": PALETTE[1], "undecided": "0.45", "not run": "0.45"}
MARKERS = {"holds": "o", "fails": "X", "undecided": "s"}
SIDES = (-1.25, 1.25)
"""The limits of the x axis; what lies beyond has its mark on the border."""
LINE = 0.19
"""The height of a line, in inches."""


def forest(verdicts: Sequence[Verdict], title: str) -> Figure:
    """a - b of every comparison with its 95 % interval, over the difference between the two rows of the claim's gap.

    Small dots are the networks and data sets alone, and brackets the margin. Left of 0, a is lower, and so better.

    Args:
        verdicts: the claims, from top to bottom; of one that was not run only the name is shown.
        title: the heading.
    """
    lines: list[tuple[Verdict, Compared | None]] = []
    for verdict in verdicts:
        lines += [(verdict, one) for one in verdict.compared] or [(verdict, None)]
    with mpl.style.context(STYLE):
        figure = Figure(figsize=(WIDTH, LINE * len(lines) + 1.6))
        figure.suptitle(title, x=0.01, ha="left")
        ax = figure.subplots()
        for y, (verdict, one) in enumerate(lines):
            if one is None:
                ax.text(0, y, " not run", color=COLOURS[verdict.word], fontsize="small", va="center")
            else:
                _draw(ax, y, verdict.word, one)
        ax.axvline(0, color="0.3", linewidth=0.8, zorder=0)
        ax.set_yticks(range(len(lines)), [_label(lines, y) for y in range(len(lines))], fontsize="small")
        for tick, (verdict, _) in zip(ax.get_yticklabels(), lines, strict=True):
            tick.set_color(COLOURS[verdict.word])
        ax.set(xlim=SIDES, ylim=(len(lines) - 0.5, -0.5))
        ax.set_xlabel("a - b, with 95 % interval [difference of the gap's two rows, such as SGD and SAM]")
        ax.tick_params(axis="y", length=0)
        words = [word for word in MARKERS if any(verdict.word == word for verdict in verdicts)]
        marks = [key(word, color=COLOURS[word], marker=MARKERS[word], linestyle="none") for word in words]
        legend(figure, [*marks, key("margin", color="0.3", marker="|", markersize=9, linestyle="none")])
    return figure


def _label(lines: Sequence[tuple[Verdict, Compared | None]], y: int) -> str:
    """The name of the claim at the first of its lines."""
    verdict, _ = lines[y]
    return verdict.claim.name if y == 0 or lines[y - 1][0] is not verdict else ""


def _draw(ax: Axes, y: int, word: str, one: Compared) -> None:
    unit = one.gap or 1.0

    def inside(value: float) -> float:
        return min(max(value / unit, SIDES[0]), SIDES[1])

    colour = COLOURS[word]
    ax.plot(
        [inside(place.mean) for place in one.places.values()], [y] * len(one.places), ".", color="0.6", markersize=4
    )
    ax.plot([inside(one.difference.low), inside(one.difference.high)], [y, y], color=colour, linewidth=1.6)
    ax.plot(inside(one.difference.mean), y, marker=MARKERS[word], color=colour, markersize=5, clip_on=False)
    if one.margin is not None:
        ends = [one.margin] + [-one.margin] * (one.comparison.expect == "equal")
        ax.plot([inside(end) for end in ends], [y] * len(ends), "|", color="0.3", markersize=9)
