"""Make run records from W&B's copy of runs that were made elsewhere: python scripts/import_wandb.py ENTITY/PROJECT

Or from the logs that W&B leaves on a machine without network: python scripts/import_wandb.py path/to/wandb. A table
then finds the records like its own. A run whose whole record is at hand needs none of this: copy its folder.
"""

import argparse
import sys
from pathlib import Path

from rst.experiments.config import InputError, load_config
from rst.experiments.imports import import_runs


def main() -> int:
    """Exit status: 0 where no run was refused."""
    parser = argparse.ArgumentParser(description="Make run records from W&B's copy of runs that were made elsewhere.")
    parser.add_argument("source", help="ENTITY/PROJECT, or a folder with W&B's offline runs anywhere in it")
    parser.add_argument("overrides", nargs="*", help="paths.runs=FOLDER, where records go (default results/runs)")
    parser.add_argument("--group", help="only the runs that were trained for this table; others may share some")
    arguments = parser.parse_intermixed_args()
    try:
        runs = Path(load_config(arguments.overrides).paths.runs)
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
