"""Train the runs that are missing: python scripts/sweep.py table03 figures claims [--workers 2] [key=value ...]"""

import argparse
import signal
import sys

import torch

from rst.experiments.errors import InputError, one_sentence
from rst.experiments.launch import local
from rst.experiments.report import records
from rst.experiments.report.naming import folder_of
from rst.experiments.report.records import Line
from rst.experiments.runs.record import ENDED
from rst.experiments.tables.claims import load_claims, split
from rst.experiments.tables.expansion import Table, load_tables, runs_of
from rst.experiments.training.signals import Interrupted


def main() -> int:
    """The exit status: 0 if every run is done, or, with --dry-run, if the tables are right."""
    parser = argparse.ArgumentParser(
        description="Train the runs of tables that are missing.", usage="%(prog)s NAME ... [options] [key=value ...]"
    )
    parser.add_argument(
        "words", nargs="+", metavar="NAME", help="a file of configs/tables, a claim, or: tables, figures, claims"
    )
    parser.add_argument("--workers", type=int, help="runs at a time (default: GPUs, or cores where there is no GPU)")
    parser.add_argument("--dry-run", action="store_true", help="train nothing: list the runs and what they will cost")
    parser.add_argument(
        "--launcher", choices=("local", "slurm"), default="local", help="here, or as jobs of Slurm (docs/clusters.md)"
    )
    parser.add_argument("--report", action="store_true", help="then write what report.py writes")
    parser.add_argument("--yes", action="store_true", help="start also what takes days on this machine")
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
        of_tables, of_claims = split(names)
        shown = list(load_tables(of_tables, overrides))
        claims = list(load_claims(overrides, of_claims)) if of_claims else []
        tables = [*shown, *(claim.table for claim in claims if claim.runs)]
        if not tables:
            raise InputError(f"there is no table to train among {' '.join(names)}.")
        if arguments.dry_run:
            return show_plan(tables)
        if arguments.launcher == "slurm":
            return queue(tables)
        failures = train(tables, arguments.workers, arguments.yes)
    except InputError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"sweep.py: {stop}", file=sys.stderr)
        return 128 + stop.signal_number
    for failure in failures:
        print(f"sweep.py: {failure}", file=sys.stderr)
    print(f"{', '.join(names)}: records in {folder_of_records(tables)}")
    if arguments.report and not report(shown, overrides if of_claims else None):
        return 1
    return 1 if failures else 0


def train(tables: list[Table], workers: int | None, yes: bool) -> list[str]:
    """Look at the images, say what the runs that are left will take, and train them; one sentence for each failure."""
    from rst.experiments.tables.estimate import forecast

    runs = runs_of(tables)
    local.check(runs)
    known = committed(tables)
    cost = forecast(runs, workers or local.default_workers(runs), torch.cuda.is_available(), known)
    print(cost.sentence, flush=True)
    if cost.days and not yes:
        raise InputError(
            f"{cost.sentence.removesuffix('.')}: write --yes (with make: YES=1) to start all the same, or take "
            "scale=cpu, scale=digits or scale=smoke (with make: SCALE=digits)."
        )
    return local.run(runs, workers)


def report(tables: list[Table], overrides_of_claims: list[str] | None) -> bool:
    """Write tables, figures and the page of claims, whatever runs they lack; whether that went well."""
    from rst.experiments.report import (  # a sweep without a report needs neither pandas nor matplotlib
        claims_page,
        files,
    )

    try:
        written = files.write(tables)
        written += [] if overrides_of_claims is None else claims_page.write(overrides_of_claims)
    except (InputError, OSError) as error:
        print(f"sweep.py: {one_sentence(error)}", file=sys.stderr)
        return False
    if len(tables) == 1:
        print(written[0].read_text(encoding="utf-8"))
    print("Written:", *written, sep="\n  ")
    return True


def show_plan(tables: list[Table]) -> int:
    """Print which runs the tables have, and what they will cost."""
    from rst.experiments.tables.estimate import plan

    print(plan(tables, committed(tables)))
    return 0


def committed(tables: list[Table]) -> dict[str, Line]:
    """The committed results of runs that are not on this disk, by id. Says how many there are.

    Raises `InputError` where a file of them is damaged.
    """
    found: dict[str, Line] = {}
    for folder in dict.fromkeys(folder_of(table) for table in tables if table.runs):
        file = folder / records.NAME
        runs = runs_of(table for table in tables if table.runs and folder_of(table) == folder)
        missing = {run.record.id for run in runs if run.record.status not in ENDED}
        own = {name: line for name, line in records.read(file).items() if name in missing}
        if own:
            print(f"{file} has the results of {len(own)} runs that are missing here: scripts/report.py writes them.")
        found |= own
    return found


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
