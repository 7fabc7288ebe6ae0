"""How a figure becomes a file: equal results give equal bytes."""

import io
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
from matplotlib.figure import Figure

STYLE = Path(__file__).parents[1] / "style.mplstyle"
"""The look of all figures, which also says how they are written."""
DATES: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""What of the metadata of each kind of file differs from one writing to the next, and is left out."""


def save(figure: Figure, file: Path) -> None:
    """Write the figure as the PNG, SVG or PDF that the name of the file says."""
    kind = file.suffix[1:]
    if kind == "svg":
        file.write_text(as_svg(figure), encoding="utf-8")
    else:
        with mpl.style.context(STYLE):
            figure.savefig(file, metadata=DATES[kind])


def as_svg(figure: Figure, transparent: bool = False) -> str:
    """The figure as SVG, with ids that count.

    Matplotlib makes the id of a marker or a clip a hash of its coordinates before they are rounded, and the layout of
    panels moves those in their last digit from one process to the next.
    """
    drawing = io.StringIO()
    with mpl.style.context(STYLE):
        figure.savefig(drawing, format="svg", transparent=transparent, metadata=DATES["svg"])
    numbers: dict[str, int] = {}
    return re.sub(
        r'(\bid="|href="#|url\(#)(\w*?)([0-9a-f]{10})\b',
        lambda match: f"{match[1]}{match[2]}{numbers.setdefault(match[3], len(numbers) + 1)}",
        drawing.getvalue(),
    )
