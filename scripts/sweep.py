"""Train the runs of tables that are missing: python scripts/sweep.py table03 figures [--workers 2] [key=value ...]"""

import argparse
import signal
import sys

from rst.experiments.config import InputError
from rst.experiments.estimate import plan
from rst.experiments.sweep import Table, jobs_of, load_tables
from rst.training import Interrupted, run


def main() -> int:
    """Exit status: 0 where every run is done; with --dry-run, where there is nothing wrong with the tables."""
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
        parser.error("--workers is of the local launcher: write slurm.array_parallelism=N.")
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
            print(plan(tables))
            return 0
        if arguments.launcher == "slurm":
            return queue(tables)
        failures = run(jobs_of(tables), arguments.workers)
    except InputError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"sweep.py: {stop}", file=sys.stderr)
        return 128 + stop.signal_number
    for failure in failures:
        print(f"sweep.py: {failure}", file=sys.stderr)
    print(f"{', '.join(names)}: records in {tables[0].cells[0].cfg.paths.runs}")
    return 1 if failures else 0


def queue(tables: list[Table]) -> int:
    """Have Slurm train what is missing."""
    from rst.training import slurm  # only here: submitit is slow to load

    queued = slurm.submit(jobs_of(tables))
    where = tables[0].cells[0].cfg.paths.runs
    print(f"{len(queued)} runs queued; squeue --me shows them, and report.py what is done. Records: {where}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Hydra takes KeyboardInterrupt for bad input
    sys.exit(main())
