"""One HTML page with all tables and figures of one scale, in one file that opens without a network."""

import base64
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import matplotlib.style
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from tqdm import tqdm

from rst.experiments.errors import InputError
from rst.experiments.files import write_atomically
from rst.experiments.report.figures import STYLE, draw
from rst.experiments.report.records import Outcome
from rst.experiments.report.results import (
    Filled,
    command_of,
    dataset_of,
    fill,
    folder_of,
    network_of,
    of_the_paper,
    scale_of,
)
from rst.experiments.report.tables import caption, readable
from rst.experiments.tables.expansion import Cell, PlannedRun, Table, runs_of

FEW = 12
"""Up to this many lines, the numbers below a figure are unfolded when the page opens."""
TEMPLATE = Path(__file__).with_name("page.html.j2")
ENVIRONMENT = {
    "git_commit": "Commit",
    "device": "Device",
    "threads": "Threads",
    "platform": "Platform",
    "python": "Python",
    "torch": "PyTorch",
    "data_digest": "Digest of the images",
}
"""The facts of a run's environment that the page shows, and their names on the page."""


def write(tables: Sequence[Table]) -> Path:
    """Write ``report.html`` into the folder of the tables' results; return the file.

    Raises:
        InputError: the tables have different scales or images, so that they cannot share a page.
    """
    names = {folder_of(table): table.name for table in tables}
    if len(names) > 1:
        places = " and ".join(f"{name} in {folder}" for folder, name in names.items())
        raise InputError(f"one page shows one scale, but the results are {places}: write a page for each.")
    [folder] = names
    filled = fill(tables)
    cells = [cell for table in tables for cell in table.cells]
    runs = runs_of(tables)
    ended = {name: outcome for table in filled for name, outcome in table.outcomes.items()}
    done = [outcome for outcome in ended.values() if not outcome.diverged]
    page = _template().render(
        scale=next(filter(None, map(scale_of, tables)), ""),
        images=_images(cells),
        comparable=of_the_paper(cells),
        done=len(done),
        planned=len(runs),
        seconds=sum(outcome.summary["train_seconds"] for outcome in done),
        seeds=sorted({run.spec.seed for run in runs}),
        networks=list(dict.fromkeys(network_of(cell) or cell.spec.network for cell in cells if cell.runs)),
        sections=[_section(table, folder) for table in tqdm(filled, desc="page", unit="table", disable=None)],
        environment=_environment(done),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["code"] = _code
    return environment.get_template(TEMPLATE.name)


def _code(text: str) -> Markup:
    """The text as HTML, with `names` between backticks as code."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))


def _images(cells: Sequence[Cell]) -> str:
    names = ", ".join(dict.fromkeys(cell.spec.dataset.name for cell in cells))
    return f"embedded digits in place of {names}" if any(cell.spec.stands_in for cell in cells) else names


# ------------------------------------------------------------------------------------------------------ a table


def _section(table: Filled, folder: Path) -> dict[str, Any]:
    done, shown = sum(not outcome.diverged for outcome in table.outcomes.values()), readable(table)
    numbered = re.fullmatch(r"(table|figure)0*(\d+)", table.name)
    return {
        "name": table.name,
        "label": f"{numbered[1].capitalize()} {numbered[2]}" if numbered else "",
        "title": table.title,
        "caption": caption(table, shown),
        "done": done,
        "planned": len(table.runs),
        "command": command_of(table),
        "figure": _figure(table) if table.draw != "table" and (done or not table.runs) else "",
        "runs": _runs(table, folder),
        **_numbers(shown),
    }


def _figure(table: Table) -> str:
    """The figure as a data URI. Its letters are outlines, since a reader may lack the font."""
    drawing = io.BytesIO()
    with mpl.style.context([STYLE, {"svg.fonttype": "path"}]):
        draw(table).savefig(drawing, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.getvalue()).decode()


def _numbers(shown: pd.DataFrame) -> dict[str, Any]:
    """`readable` in groups of one network and data set, with a column for n; and which columns have a spread."""
    shown = shown.copy()
    for header in shown:
        counted = shown[header].str.extract(r"^(.*?) ?\(?n = ([\d/]+(?:, \d+ diverged)?)\)?$")
        if counted[1].notna().any():
            at = shown.columns.get_loc(header)
            shown[header] = counted[0]
            shown.insert(at + 1, "n", counted[1])
    shown = shown.replace(r"(?<!\S)-(?=\d)", "−", regex=True)
    at = shown.columns.get_loc("Scheme")
    where, headers = shown.columns[:at], list(shown.columns[at:])
    lines = [(", ".join(line[:at]), list(line[at:])) for line in shown.itertuples(index=False, name=None)]
    groups = [(name, [line for _, line in own]) for name, own in groupby(lines, key=lambda line: line[0])]
    spreads = [header for header in headers if shown[header].str.contains("±").any()]
    return {
        "where": " and ".join(where),
        "headers": headers,
        "groups": groups,
        "spreads": spreads,
        "few": len(lines) <= FEW,
    }


def _runs(table: Table, folder: Path) -> list[dict[str, Any]]:
    """The seeds of each cell, with links to the records of the runs that are done; cells in the order of `readable`."""

    def link(run: PlannedRun) -> str:
        return quote(Path(os.path.relpath(run.record.folder, folder)).as_posix()) + "/" if run.record.done else ""

    places = list(dict.fromkeys((cell.network, cell.dataset) for cell in table.cells))
    return [
        {
            "label": ", ".join(filter(None, (network_of(cell), dataset_of(cell), cell.group, cell.row))),
            "seeds": [(run.spec.seed, link(run)) for run in cell.runs],
        }
        for cell in sorted(table.cells, key=lambda cell: places.index((cell.network, cell.dataset)))
    ]


# ------------------------------------------------------------------------------------------------ the environment


def _environment(done: Iterable[Outcome]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Each fact of the runs' latest starts, with the values that occur and the number of runs; most frequent first."""
    lines = [outcome.line for outcome in done]
    counts = {key: Counter(line[key] for line in lines if line.get(key)) for key in ENVIRONMENT}
    return [
        (ENVIRONMENT[key], sorted(values.items(), key=lambda item: (-item[1], item[0])))
        for key, values in counts.items()
        if values
    ]
