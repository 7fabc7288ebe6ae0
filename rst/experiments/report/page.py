"""One HTML page with all tables and figures of one scale, in one file that opens without a network."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from tqdm import tqdm

from rst.experiments.files import write_atomically
from rst.experiments.report import figures
from rst.experiments.report.contents import common_folder, done_of, files_of, headline, label_of
from rst.experiments.report.figures.panels import PALETTE
from rst.experiments.report.inline import inline
from rst.experiments.report.labels import datasets_of, images_of, network_of, networks_of, unlike_the_paper
from rst.experiments.report.naming import command_of, scale_of
from rst.experiments.report.paper import of_the_paper
from rst.experiments.report.records import Outcome
from rst.experiments.report.results import Filled, fill, results
from rst.experiments.report.tables import best_rows, caption, readable
from rst.experiments.report.verdict import VerdictLine, counted
from rst.experiments.tables.expansion import PlannedRun, Table, runs_of

FEW = 12
"""Up to this many lines, numbers are unfolded when the page opens."""
LETTERS = 10
"""How many letters of a commit or digest are shown."""
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


def write(tables: Sequence[Table], verdicts: Sequence[VerdictLine] = ()) -> Path:
    """Write ``report.html`` into the folder of the tables' results; return the file.

    Args:
        tables: what the page shows, all of one scale.
        verdicts: what has become of the paper's claims, which the page opens with.

    Raises:
        InputError: the tables have different scales or images, so that they cannot share a page.
    """
    folder = common_folder(tables)
    filled = fill(tables)
    cells = [cell for table in tables for cell in table.cells]
    runs = runs_of(tables)
    ended = {name: outcome for table in filled for name, outcome in table.outcomes.items()}
    done = [outcome for outcome in ended.values() if not outcome.diverged]
    first = headline(filled)
    page = _template().render(
        scale=next(filter(None, map(scale_of, tables)), ""),
        images=images_of(cell for cell in cells if cell.runs),
        unlike="" if of_the_paper(cells) else unlike_the_paper(cells),
        done=len(done),
        planned=len(runs),
        seconds=sum(outcome.summary["train_seconds"] for outcome in done),
        seeds=_seeds(runs),
        networks=list(dict.fromkeys(network_of(cell) or cell.spec.network for cell in cells if cell.runs)),
        verdicts=verdicts,
        outcomes=counted(verdicts),
        headline=first.name if first else "",
        sections=[_section(table, folder) for table in tqdm(filled, desc="page", unit="table", disable=None)],
        environment=_environment(done),
        palette=PALETTE,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def _seeds(runs: Sequence[PlannedRun]) -> str:
    """How many seeds, and which: "5 seeds (0 to 4)"."""
    seeds = sorted({run.spec.seed for run in runs})
    if not seeds:
        return "none"
    which = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    return f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({which})"


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


# ------------------------------------------------------------------------------------------------------ a table


def _section(table: Filled, folder: Path) -> dict[str, Any]:
    done, shown = done_of(table), readable(table)
    drawn = figures.drawn_as(table) if done or not table.runs else ""
    return {
        "name": table.name,
        "label": label_of(table),
        "title": table.title,
        "say": figures.caption_of(table) if drawn else table.caption,
        "caption": caption(table, shown),
        "done": done,
        "planned": len(table.runs),
        "command": command_of(table),
        "figure": inline(table) if drawn else "",
        "files": files_of(table),
        "runs": _runs(table, folder),
        "folded": bool(drawn and table.draw != "table") or not done,
        **_numbers(shown, best_rows(results(table))),
    }


def _numbers(shown: pd.DataFrame, best: Sequence[bool]) -> dict[str, Any]:
    """`readable` in groups of one network and data set, with a column for n; and which columns have a spread.

    ``best`` says of each line whether it has the smallest error of its group.
    """
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
    rows = zip(shown.itertuples(index=False, name=None), best, strict=True)
    lines = [(", ".join(line[:at]), list(line[at:]), is_best) for line, is_best in rows]
    groups = [(name, [line[1:] for line in own]) for name, own in groupby(lines, key=lambda line: line[0])]
    spreads = [header for header in headers if shown[header].str.contains("±").any()]
    return {
        "where": " and ".join(where),
        "headers": headers,
        "groups": groups,
        "spreads": spreads,
        "few": len(lines) <= FEW,
        "lines": len(lines),
    }


def _runs(table: Table, folder: Path) -> list[dict[str, Any]]:
    """The seeds of each cell, with links to the records of the runs that are done; cells in the order of `readable`."""

    def link(run: PlannedRun) -> str:
        return quote(Path(os.path.relpath(run.record.folder, folder)).as_posix()) + "/" if run.record.done else ""

    labels = list(zip(networks_of(table.cells), datasets_of(table.cells), strict=True))
    places = list(dict.fromkeys(labels))
    return [
        {
            "label": ", ".join(filter(None, (*label, cell.group, cell.row))),
            "seeds": [(run.spec.seed, link(run)) for run in cell.runs],
        }
        for label, cell in sorted(zip(labels, table.cells, strict=True), key=lambda pair: places.index(pair[0]))
    ]


# ------------------------------------------------------------------------------------------------ the environment


def _environment(done: Iterable[Outcome]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Each fact of the runs' latest starts, with the values that occur and the number of runs; most frequent first."""
    lines = [outcome.line for outcome in done]
    counts = {key: Counter(_short(key, line[key]) for line in lines if line.get(key)) for key in ENVIRONMENT}
    return [
        (ENVIRONMENT[key], sorted(values.items(), key=lambda item: (-item[1], item[0])))
        for key, values in counts.items()
        if values
    ]


def _short(key: str, value: str) -> str:
    """The first letters of a commit or a digest, and whether the code had been changed since the commit."""
    if key not in ("git_commit", "data_digest"):
        return value
    name, dash, state = value.partition("-")
    return name[:LETTERS] + dash + state
