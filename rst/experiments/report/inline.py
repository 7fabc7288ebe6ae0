"""A figure as a part of a page, in the colours of the page."""

import re

from markupsafe import Markup, escape

from rst.experiments.report import figures
from rst.experiments.report.contents import label_of
from rst.experiments.report.figures.panels import PALETTE
from rst.experiments.report.figures.saving import as_svg
from rst.experiments.tables.expansion import Table

THEME = {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    "#666666": "var(--soft)",
    "#999999": "var(--soft)",
    "#e4e4e4": "var(--rule)",
    **{color.lower(): f"var(--series-{i})" for i, color in enumerate(PALETTE)},
}
"""Colours of a figure, and what takes their place on a page that is light or dark."""


def inline(table: Table) -> Markup:
    """The figure as SVG in the colours of the page. Its letters are outlines, since a reader may lack the font."""
    figure = figures.draw(table, heading=False)
    svg = as_svg(figure, transparent=True)
    # A style would be the whole page's; the page has it for its figures.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.S)
    # Ids are the page's, which has many figures.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{table.name}-", svg)
    svg = re.sub("#[0-9a-f]{6}\\b", lambda match: THEME.get(match[0], match[0]), svg)
    width, height = figure.get_size_inches()
    text = escape(f"{label_of(table)} {table.title}, as a figure. The table has all its numbers.".strip())
    head = f'<svg role="img" aria-label="{text}" fill="currentColor" style="--ratio: {width / height:.3f}" '
    svg = head + re.sub(r'(width|height)="[\d.]+pt"\s*', "", svg.removeprefix("<svg "), count=2)
    return Markup(re.sub(r"\n\s*", "\n", svg).strip())
