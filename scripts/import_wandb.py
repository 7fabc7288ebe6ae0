"""Make run records of runs that were trained elsewhere, from W&B: python scripts/import_wandb.py ENTITY/PROJECT

Where the runs had no network, from the folder that W&B left there: python scripts/import_wandb.py path/to/wandb.
Tables find the imported records like those of runs that were trained here. A run whose record folder is at hand needs
no import: copy the folder into results/runs.
"""

import argparse
import sys
from pathlib import Path

from rst.experiments.compose import compose
from rst.experiments.errors import InputError
from rst.experiments.runs.wandb_import import import_runs


def main() -> int:
    """The exit status: 0 if no run was refused."""
    parser = argparse.ArgumentParser(description="Make run records of runs that were trained elsewhere, from W&B.")
    parser.add_argument("source", help="ENTITY/PROJECT, or a folder that has W&B's run folders at any depth")
    parser.add_argument("overrides", nargs="*", help="paths.runs=FOLDER, where records go (default results/runs)")
    parser.add_argument("--group", help="only the runs of this W&B group: the table that they were trained for")
    arguments = parser.parse_intermixed_args()
    try:
        runs = Path(compose(arguments.overrides).paths.runs)
        counts, refusals = import_runs(arguments.source, runs, arguments.group)
    except InputError as error:
        print(f"import_wandb.py: {error}", file=sys.stderr)
        return 1
    for refusal in refusals:
        print(f"import_wandb.py: refused: {refusal}", file=sys.stderr)
    outcome = ", ".join(f"{counts[name]} {name}" for name in ("imported", "already there", "not finished", "refused"))
    print(f"{arguments.source}: {outcome}. Records: {runs}")
    return 1 if refusals else 0


if __name__ == "__main__":
    sys.exit(main())
