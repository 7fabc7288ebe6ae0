"""Draw how runs went: python scripts/plot_runs.py RUN|TABLE ... [key=value ...]

A run is its id, or a part of it, and key=value stands for the runs that fit, as for runs.py; runs that differ in their
seed alone share a curve. For a table of configs/tables, each cell is a curve, and key=value is as for report.py.
"""

import argparse
import signal
import sys
from pathlib import Path

from rst.experiments.compose import compose
from rst.experiments.errors import InputError
from rst.experiments.report import curves
from rst.experiments.runs.catalogue import by_label, find
from rst.experiments.runs.record import Record
from rst.experiments.tables.expansion import COLLECTIONS, load_tables
from rst.experiments.tables.table_file import table_names


def main() -> int:
    """The exit status: 0 if the figure is written."""
    parser = argparse.ArgumentParser(description="Draw error, loss, sharpness gap, gate and time of runs over epochs.")
    parser.add_argument("words", nargs="+", metavar="RUN", help="an id, or a part of it; a table; or key=value")
    parser.add_argument("--output", type=Path, help="the figure without .png (default results/curves/<its runs>)")
    arguments = parser.parse_intermixed_args()
    if arguments.output is not None and not arguments.output.name:
        parser.error(f"--output {arguments.output} names no file: write one, as in --output curves/mine.")
    words = arguments.words
    tables = [word for word in words if word in {*table_names(), *COLLECTIONS}]
    places = [word for word in words if word.startswith("paths.")]
    try:
        runs = Path(compose(places).paths.runs)
        if tables:
            groups = cells(tables, [word for word in words if word not in tables])
        else:
            groups = by_label(begun(find(runs, [word for word in words if word not in places])))
        if not groups:
            raise InputError(f"no run in {runs} that fits {' '.join(words)} has an epoch on record.")
        found = [record.id for records in groups.values() for record in records]
        name = "-".join(tables) or (found[0] if len(found) == 1 else "runs")
        files = curves.write(groups, arguments.output or runs.parent / "curves" / name)
    except InputError as error:
        print(f"plot_runs.py: {error}", file=sys.stderr)
        return 1
    print("Written:", *files, sep="\n  ")
    return 0


def cells(tables: list[str], overrides: list[str]) -> dict[str, list[Record]]:
    """The runs of each cell of the tables that have been begun, under the names of the cell."""
    if names := [word for word in overrides if "=" not in word]:
        raise InputError(f"{names[0]} is no table: name tables or runs, not both.")
    groups: dict[str, list[Record]] = {}
    for table in load_tables(tables, overrides):
        for cell in table.cells:
            label = " ".join(filter(None, (cell.group, cell.network, cell.row, cell.dataset)))
            if records := begun([run.record for run in cell.runs]):
                groups[label] = records
    return groups


def begun(records: list[Record]) -> list[Record]:
    """Those of the runs that have an epoch on record."""
    return [record for record in records if record.metrics]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Hydra takes KeyboardInterrupt for bad input
    sys.exit(main())
