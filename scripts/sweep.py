"""Train the runs of tables that are missing: python scripts/sweep.py table03 figures [--workers 2] [key=value ...]"""

import argparse
import sys

from rst.experiments.config import InputError
from rst.experiments.estimate import plan, unique
from rst.experiments.sweep import load_tables
from rst.training import Interrupted, run


def main() -> int:
    """Exit status: 0 where every run is done; with --dry-run, where there is nothing wrong with the tables."""
    parser = argparse.ArgumentParser(
        description="Train the runs of tables that are missing.", usage="%(prog)s NAME ... [options] [key=value ...]"
    )
    parser.add_argument("words", nargs="+", metavar="NAME", help="a file of configs/tables, or: tables, figures")
    parser.add_argument("--workers", type=int, help="runs at a time (default: GPUs, or cores where there is no GPU)")
    parser.add_argument("--dry-run", action="store_true", help="train nothing: list the runs and what they will cost")
    arguments = parser.parse_intermixed_args()
    if arguments.workers is not None and arguments.workers < 1:
        parser.error(f"--workers {arguments.workers}: write a number from 1.")
    overrides = [word for word in arguments.words if "=" in word]
    names = [word for word in arguments.words if "=" not in word]
    if not names:
        parser.error("no table: write a file of configs/tables, or tables, or figures.")
    try:
        tables = list(load_tables(names, overrides))
    except InputError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 1
    if arguments.dry_run:
        print(plan(tables))
        return 0
    try:
        failures = run(unique(tables), arguments.workers)
    except Interrupted as stop:
        print(f"sweep.py: {stop}", file=sys.stderr)
        return 128 + stop.signal_number
    for failure in failures:
        print(f"sweep.py: {failure}", file=sys.stderr)
    print(f"{', '.join(names)}: records in {tables[0].cells[0].cfg.paths.runs}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
