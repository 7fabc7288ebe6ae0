"""The comparisons of claims with their intervals, one line each."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rst.experiments.report.claims import Compared, Verdict, side
from rst.experiments.report.figures.panels import PALETTE, WIDTH, key, legend
from rst.experiments.report.figures.saving import STYLE
from rst.experiments.report.tables import METRICS

COLOURS = {"holds": PALETTE[0], "fails": PALETTE[1], "undecided": "0.45"}
MARKERS = {"holds": "o", "fails": "X", "undecided": "s"}
CLAIMED = "#E3EEF6"
"""The colour of the part of a line where the claim expects the difference."""
PLACE: dict[str, Any] = {"marker": ".", "color": "0.6", "markersize": 4, "linestyle": "none"}
"""The look of one network and data set."""
SIDES = (-1.25, 1.25)
"""The limits of the x axis; what lies beyond has its mark on the border, and an interval an arrow."""
LINE = 0.19
"""The height of a line, in inches."""


def forest(verdicts: Sequence[Verdict], title: str) -> Figure:
    """a - b of every comparison with its 95 % interval, over the difference between the two rows of the claim's gap.

    Small dots are the networks and data sets alone. Left of 0, a is lower, and so better. The shaded part of a line is
    where the claim expects a - b: below 0, below the margin, or within it. A mark says whether the interval lies wholly
    there, and the colour of a name the verdict on the whole claim. On the right stands what tells the lines of a claim
    apart.

    Args:
        verdicts: the claims, from top to bottom; those that were not run are counted in the heading.
        title: the heading.
    """
    lines = [(verdict, one) for verdict in verdicts for one in verdict.compared]
    missing = sum(not verdict.compared for verdict in verdicts)
    with mpl.style.context(STYLE):
        figure = Figure(figsize=(WIDTH, LINE * len(lines) + 1.6))
        figure.suptitle(title + f" ({missing} of {len(verdicts)} are not run)" * bool(missing), x=0.01, ha="left")
        ax = figure.subplots()
        for y, (_, one) in enumerate(lines):
            _draw(ax, y, one)
        ax.axvline(0, color="0.3", linewidth=0.8, zorder=1)
        ax.set_yticks(range(len(lines)), [_label(lines, y) for y in range(len(lines))], fontsize="small")
        for tick, (verdict, _) in zip(ax.get_yticklabels(), lines, strict=True):
            tick.set_color(COLOURS[verdict.word])
        own = ax.secondary_yaxis("right")
        own.set_yticks(range(len(lines)), [_difference(verdict, one) for verdict, one in lines], fontsize="small")
        own.tick_params(length=0, labelcolor="0.4")
        own.spines["right"].set_visible(False)
        ax.set(xlim=SIDES, ylim=(max(len(lines), 1) - 0.5, -0.5))
        ax.set_xlabel("a - b with 95 % interval [unit: difference of SGD and SAM, or the claim's own]")
        ax.tick_params(axis="y", length=0)
        words = [word for word in MARKERS if any(word in (verdict.word, one.word) for verdict, one in lines)]
        marks = [key(word, color=COLOURS[word], marker=MARKERS[word], linestyle="none") for word in words]
        expected = key("as claimed", color=CLAIMED, marker="s", markersize=9, linestyle="none")
        legend(figure, [*marks, expected, key("one network and data set", **PLACE)], columns=5)
    return figure


def _label(lines: Sequence[tuple[Verdict, Compared]], y: int) -> str:
    """The name of the claim at the first of its lines."""
    verdict, _ = lines[y]
    return verdict.claim.name if y == 0 or lines[y - 1][0] is not verdict else ""


def _difference(verdict: Verdict, one: Compared) -> str:
    """What a comparison has for itself among those of its claim: its metric, and the rows a and b."""
    texts = [(METRICS[own.metric], side(own.comparison.a), side(own.comparison.b)) for own in verdict.compared]
    mine = texts[verdict.compared.index(one)]
    differs = [len(set(column)) > 1 for column in zip(*texts, strict=True)]
    return textwrap.shorten(
        " - ".join(text for text, tells in zip(mine, differs, strict=True) if tells), 38, placeholder=" …"
    )


def _draw(ax: Axes, y: int, one: Compared) -> None:
    unit, word = one.gap or 1.0, one.word
    colour = COLOURS[word]

    def inside(value: float) -> float:
        return min(max(value / unit, SIDES[0]), SIDES[1])

    low, high = one.difference.low, one.difference.high
    begin, end = one.expected
    ax.fill_betweenx([y - 0.42, y + 0.42], inside(begin), inside(end), color=CLAIMED, linewidth=0, zorder=0)
    ax.plot([inside(place.mean) for place in one.places.values()], [y] * len(one.places), **PLACE)
    ax.plot([inside(low), inside(high)], [y, y], color=colour, linewidth=1.6)
    for border, beyond, arrow in zip(SIDES, (low / unit < SIDES[0], high / unit > SIDES[1]), "<>", strict=True):
        if beyond:
            ax.plot(border, y, marker=arrow, color=colour, markersize=5, clip_on=False)
    ax.plot(inside(one.difference.mean), y, marker=MARKERS[word], color=colour, markersize=5, clip_on=False)
