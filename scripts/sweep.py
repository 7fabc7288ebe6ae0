"""Train the runs of a table that are missing: python scripts/sweep.py demo [--workers 2] [key=value ...]"""

import argparse
import os
import sys

from rst.experiments.config import InputError
from rst.experiments.sweep import load_table
from rst.training import run_table


def main() -> int:
    """Exit status: 0 where every run of the table is done."""
    parser = argparse.ArgumentParser(description="Train the runs of a table that are missing.")
    parser.add_argument("table", help="a file of configs/tables, without .yaml")
    parser.add_argument("overrides", nargs="*", help="key=value, for every run")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time (default: cores)")
    arguments = parser.parse_intermixed_args()
    if arguments.workers < 1:
        parser.error(f"--workers {arguments.workers}: write a number from 1.")
    try:
        table = load_table(arguments.table, arguments.overrides)
    except InputError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 1
    failures = run_table(table, arguments.workers)
    for failure in failures:
        print(f"sweep.py: failed: {failure}", file=sys.stderr)
    print(f"{table.name}: records in {table.cells[0].record.folder.parent}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
