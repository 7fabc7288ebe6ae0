"""The figures of a part, as JSON for programs and as one Markdown table for people."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rst.experiments.files import write_atomically

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """What a part has measured."""

    name: str
    title: str
    note: str
    """What was timed and how, in sentences."""
    rounds: int
    rows: list[Row]
    """The figures, in dictionaries with equal keys: plain words with underscores."""
    shown: list[Row] = field(default_factory=list)
    """The rows of the Markdown table where they are not ``rows``."""

    @property
    def markdown(self) -> str:
        """Title, note and table; a number has four significant digits, or those before the point."""
        from tabulate import tabulate

        rows = self.shown or self.rows
        cells = [[_cell(value) for value in row.values()] for row in rows]
        numeric = [all(not isinstance(row[key], str) for row in rows) for key in rows[0]]
        table = tabulate(
            cells,
            [key.replace("_", " ") for key in rows[0]],
            tablefmt="pipe",
            disable_numparse=True,
            colalign=["right" if number else "left" for number in numeric],
        )
        return f"# {self.title}\n\n{self.note}\n\n{table}\n"


def write(table: Table, folder: Path, environment: Mapping[str, Any], seconds: float) -> list[Path]:
    """Write ``<name>.json`` and ``<name>.md`` with the environment into a folder that exists; the two files."""
    record = {
        "part": table.name,
        "title": table.title,
        "note": table.note,
        "rounds": table.rounds,
        "rows": table.rows,
        "seconds": round(seconds, 1),
        "environment": dict(environment),
    }
    where = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in environment.items())
    contents = {
        "json": json.dumps(record, indent=2, ensure_ascii=False) + "\n",
        "md": f"{table.markdown}\nMedians of {table.rounds} rounds, in {seconds:.0f} s: {where}.\n",
    }
    files = [folder / f"{table.name}.{suffix}" for suffix in contents]
    for file, content in zip(files, contents.values(), strict=True):
        write_atomically(file, content)
    return files


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
