"""All files of a report, written together."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from rst.experiments.report import figures, page, tables
from rst.experiments.report.results import one_look
from rst.experiments.tables.expansion import Table


def write(loaded: Sequence[Table], with_page: bool = False, prune: bool = False) -> list[Path]:
    """Write each table as Markdown, CSV and LaTeX, each figure as PNG and SVG, and ``records.csv``; return the files.

    Args:
        loaded: the tables and figures.
        with_page: write ``report.html`` as well, one page with all of them.
        prune: drop the lines of ``records.csv`` whose run has no record any more.

    Raises:
        InputError: a table file is wrong, or a file cannot be written.
    """
    for table in loaded:
        figures.check(table)
    files: list[Path] = []
    with one_look():
        for table in tqdm(loaded, desc="report", unit="table", disable=None):
            files += tables.write(table, prune)
            files += figures.write(table) if table.draw != "table" else []
        files += [page.write(loaded)] if with_page else []
    return list(dict.fromkeys(files))
