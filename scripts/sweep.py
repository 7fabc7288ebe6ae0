"""Train the runs of tables that are missing: python scripts/sweep.py table03 figures [--workers 2] [key=value ...]"""

import argparse
import signal
import sys

from rst.experiments.errors import InputError
from rst.experiments.launch import local
from rst.experiments.tables.expansion import Table, load_tables, runs_of
from rst.experiments.training.signals import Interrupted


def main() -> int:
    """The exit status: 0 if every run is done, or, with --dry-run, if the tables are right."""
    parser = argparse.ArgumentParser(
        description="Train the runs of tables that are missing.", usage="%(prog)s NAME ... [options] [key=value ...]"
    )
    parser.add_argument("words", nargs="+", metavar="NAME", help="a file of configs/tables, or: tables, figures")
    parser.add_argument("--workers", type=int, help="runs at a time (default: GPUs, or cores where there is no GPU)")
    parser.add_argument("--dry-run", action="store_true", help="train nothing: list the runs and what they will cost")
    parser.add_argument(
        "--launcher", choices=("local", "slurm"), default="local", help="here, or as jobs of Slurm (docs/clusters.md)"
    )
    arguments = parser.parse_intermixed_args()
    if arguments.launcher == "slurm" and arguments.workers is not None:
        parser.error("--workers is an option of the local launcher: write slurm.array_parallelism=N.")
    if arguments.workers is not None and arguments.workers < 1:
        parser.error(f"--workers {arguments.workers}: write a number from 1.")
    overrides = [word for word in arguments.words if "=" in word]
    names = [word for word in arguments.words if "=" not in word]
    if not names:
        parser.error("no table: write a file of configs/tables, or tables, or figures.")
    try:
        tables = list(load_tables(names, overrides))
        if not tables:
            raise InputError(f"there is no table to train among {' '.join(names)}.")
        if arguments.dry_run:
            return show_plan(tables)
        if arguments.launcher == "slurm":
            return queue(tables)
        failures = local.run(runs_of(tables), arguments.workers)
    except InputError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"sweep.py: {stop}", file=sys.stderr)
        return 128 + stop.signal_number
    for failure in failures:
        print(f"sweep.py: {failure}", file=sys.stderr)
    print(f"{', '.join(names)}: records in {folder_of_records(tables)}")
    return 1 if failures else 0


def show_plan(tables: list[Table]) -> int:
    """Print which runs the tables have, and what they will cost."""
    from rst.experiments.tables.estimate import plan

    print(plan(tables))
    return 0


def queue(tables: list[Table]) -> int:
    """Have Slurm train the runs that are missing."""
    from rst.experiments.launch import slurm  # submitit is slow to load

    queued = slurm.submit(runs_of(tables))
    print(
        f"{len(queued)} runs queued; squeue --me shows them, and report.py what is done. "
        f"Records: {folder_of_records(tables)}"
    )
    return 0


def folder_of_records(tables: list[Table]) -> str:
    """The folder with the records of the tables' runs."""
    return tables[0].cells[0].spec.paths.runs


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Hydra takes KeyboardInterrupt for bad input
    sys.exit(main())
