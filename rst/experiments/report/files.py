"""All files of a report, written together."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from rst.experiments.report import figures, index, page, records, tables
from rst.experiments.report.naming import folder_of
from rst.experiments.report.results import Filled, fill
from rst.experiments.report.verdict import VerdictLine
from rst.experiments.tables.expansion import Table, runs_of


def write(
    loaded: Sequence[Table],
    page_by: str = "",
    prune: bool = False,
    tell: Callable[[str], None] = print,
    verdicts: Sequence[VerdictLine] = (),
) -> list[Path]:
    """Write each table as Markdown, CSV and LaTeX, each figure as PNG, SVG and PDF, and ``records.csv``; return them.

    Args:
        loaded: the tables and figures.
        page_by: the command that asks for ``report.html`` and ``README.md`` as well, overviews with all of them; empty
            where none does.
        prune: drop the lines of ``records.csv`` whose run has no record here, and take nothing from them.
        tell: gets a sentence on what was dropped.
        verdicts: what the overviews open with.

    Raises:
        InputError: a table file is wrong, a record is damaged, or a file cannot be written.
    """
    for table in loaded:
        figures.check(table)
    filled = fill(loaded, records_alone=prune)
    recorded = write_records(filled, prune, tell)  # first, since it may refuse to prune
    files: list[Path] = []
    for table in tqdm(filled, desc="report", unit="table", disable=None):
        files += tables.write(table)
        files += figures.write(table) if figures.drawn_as(table) else []
    files += [page.write(filled, verdicts), index.write(filled, verdicts, page_by)] if page_by else []
    return [*files, *recorded]


def write_records(filled: Sequence[Filled], prune: bool = False, tell: Callable[[str], None] = print) -> list[Path]:
    """Put what came out of the tables' runs into ``records.csv`` of their folders; return these files."""
    files = []
    for folder in dict.fromkeys(folder_of(table) for table in filled if table.runs):
        own = [table for table in filled if folder_of(table) == folder]
        outcomes = {name: outcome for table in own for name, outcome in table.outcomes.items()}
        dropped = records.write(runs_of(own), outcomes, folder / records.NAME, prune)
        files.append(folder / records.NAME)
        if dropped:
            tell(dropped)
    return files
