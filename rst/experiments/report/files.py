"""All files of a report, written together."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from rst.experiments.report import figures, page, records, tables
from rst.experiments.report.results import Filled, fill, folder_of
from rst.experiments.tables.expansion import Table, runs_of


def write(
    loaded: Sequence[Table], with_page: bool = False, prune: bool = False, tell: Callable[[str], None] = print
) -> list[Path]:
    """Write each table as Markdown, CSV and LaTeX, each figure as PNG and SVG, and ``records.csv``; return the files.

    Args:
        loaded: the tables and figures.
        with_page: write ``report.html`` as well, one page with all of them.
        prune: drop the lines of ``records.csv`` whose run has no record here, and take nothing from them.
        tell: gets a sentence on what was dropped.

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
        files += figures.write(table) if table.draw != "table" else []
    files += [page.write(filled)] if with_page else []
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
