"""The report: all tables and figures of one scale on one page, which opens without a network."""

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

from rst.experiments.config import InputError
from rst.experiments.record import write_atomically
from rst.experiments.sweep import Cell, Job, Table, jobs_of
from rst.report.figures import STYLE, draw
from rst.report.results import folder_of, stands_in
from rst.report.tables import caption, readable

FEW = 12
"""Lines of numbers that stand open below a figure."""
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
"""Keys of environment.json that the page shows, and what it calls them."""


def write(tables: Sequence[Table]) -> Path:
    """Write ``report.html`` into the folder of the tables' results; the file.

    Raises `InputError` where the tables are of different scales or images: they share no page.
    """
    names = {folder_of(table): table.name for table in tables}
    if len(names) > 1:
        places = " and ".join(f"{name} in {folder}" for folder, name in names.items())
        raise InputError(f"one page holds one scale, but the results are those of {places}: write a page for each.")
    [folder] = names
    cells = [cell for table in tables for cell in table.cells]
    jobs = jobs_of(tables)
    done = [job for job in jobs if job.record.done]
    page = _template().render(
        scale=cells[0].cfg.scale,
        images=_images(cells),
        comparable=cells[0].cfg.scale == "paper" and not any(map(stands_in, cells)),
        done=len(done),
        wanted=len(jobs),
        seconds=sum(job.record.summary["train_seconds"] for job in done),
        seeds=sorted({job.cfg.seed for job in jobs}),
        networks=list(dict.fromkeys(cell.block or cell.cfg.network for cell in cells if cell.jobs)),
        sections=[_section(table, folder) for table in tqdm(tables, desc="page", unit="table", disable=None)],
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
    """The text with its `names` set as code."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))


def _images(cells: Sequence[Cell]) -> str:
    names = ", ".join(dict.fromkeys(cell.cfg.dataset.name for cell in cells))
    return f"embedded digits in place of {names}" if any(map(stands_in, cells)) else names


# ------------------------------------------------------------------------------------------------------ a table


def _section(table: Table, folder: Path) -> dict[str, Any]:
    done, shown = sum(job.record.done for job in table.jobs), readable(table)
    numbered = re.fullmatch(r"(table|figure)0*(\d+)", table.name)
    return {
        "name": table.name,
        "label": f"{numbered[1].capitalize()} {numbered[2]}" if numbered else "",
        "title": table.title,
        "caption": caption(table, shown),
        "done": done,
        "wanted": len(table.jobs),
        "command": f"make {table.name} SCALE={table.cells[0].cfg.scale}",
        "figure": _figure(table) if table.draw != "table" and (done or not table.jobs) else "",
        "runs": _runs(table, folder),
        **_numbers(shown),
    }


def _figure(table: Table) -> str:
    """The figure as a data URI, its letters as outlines: a reader may lack the font."""
    drawing = io.BytesIO()
    with mpl.style.context([STYLE, {"svg.fonttype": "path"}]):
        draw(table).savefig(drawing, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.getvalue()).decode()


def _numbers(shown: pd.DataFrame) -> dict[str, Any]:
    """`readable` by network and data set, with n in a column of its own, and which columns have a spread."""
    shown = shown.copy()
    for header in shown:
        counted = shown[header].str.extract(r"^(.*?) ?\(?n = ([\d/]+)\)?$")
        if counted[1].notna().any():
            at = shown.columns.get_loc(header)
            shown[header] = counted[0]
            shown.insert(at + 1, "n", counted[1])
    shown = shown.replace("^-", "−", regex=True)
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
    """The seeds of each cell, those that are done with the way to their record; cells in the order of `readable`."""

    def link(job: Job) -> str:
        return quote(Path(os.path.relpath(job.record.folder, folder)).as_posix()) + "/" if job.record.done else ""

    places = list(dict.fromkeys((cell.block, cell.column) for cell in table.cells))
    return [
        {
            "label": ", ".join(part for part in (cell.block, cell.column, cell.group, cell.row) if part),
            "seeds": [(job.cfg.seed, link(job)) for job in cell.jobs],
        }
        for cell in sorted(table.cells, key=lambda cell: places.index((cell.block, cell.column)))
    ]


# ------------------------------------------------------------------------------------------------ the environment


def _environment(done: Iterable[Job]) -> list[tuple[str, list[tuple[str, int]]]]:
    """What the runs ran on: of each fact the values that occur, the most frequent first, with the number of runs."""
    records = [job.record.environment for job in done if (job.record.folder / "environment.json").exists()]
    counts = {key: Counter(str(record[key]) for record in records if key in record) for key in ENVIRONMENT}
    return [
        (ENVIRONMENT[key], sorted(values.items(), key=lambda item: (-item[1], item[0])))
        for key, values in counts.items()
        if values
    ]
