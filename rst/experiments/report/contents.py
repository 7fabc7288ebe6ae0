"""What every overview of a scale needs: its folder, its headline, and how its tables and their files are called."""

import re
from collections.abc import Sequence
from pathlib import Path

from rst.experiments.errors import InputError
from rst.experiments.report import figures
from rst.experiments.report.naming import folder_of, stem_of
from rst.experiments.report.results import Filled
from rst.experiments.tables.expansion import Table


def common_folder(tables: Sequence[Table]) -> Path:
    """The folder of the results of all tables. Raises `InputError` if they have several."""
    names = {folder_of(table): table.name for table in tables}
    if len(names) > 1:
        places = " and ".join(f"{name} in {folder}" for folder, name in names.items())
        raise InputError(f"one page shows one scale, but the results are {places}: write a page for each.")
    return next(iter(names))


def done_of(table: Filled) -> int:
    """How many of the table's runs are done."""
    return sum(not outcome.diverged for outcome in table.outcomes.values())


def headline(tables: Sequence[Filled]) -> Filled | None:
    """The table whose figure says most: a summary if there is one, else the first figure of errors that has runs."""
    with_runs = [table for table in tables if done_of(table)]
    for kind in ("summary", "error_over_cost", "intervals"):
        for table in with_runs:
            if figures.drawn_as(table) == kind:
                return table
    return None


def label_of(table: Table) -> str:
    """The name in the paper, such as "Table 3" for ``table03``; empty for a table with a name of its own."""
    numbered = re.fullmatch(r"(table|figure)0*(\d+)", table.name)
    return f"{numbered[1].capitalize()} {numbered[2]}" if numbered else ""


def files_of(table: Table) -> list[tuple[str, str]]:
    """The files of the table: what each is, and where it stands in the folder of its results."""
    stem = stem_of(table)
    kinds = [("CSV", f"tables/{stem}.csv"), ("Markdown", f"tables/{stem}.md"), ("LaTeX", f"tables/{stem}.tex")]
    return kinds + [
        (kind.upper(), f"figures/{stem}.{kind}") for kind in ("png", "svg", "pdf") if figures.drawn_as(table)
    ]
