"""Write a table and its figure from the run records: python scripts/report.py demo [key=value ...]"""

import argparse
import sys
from pathlib import Path

from rst.experiments.config import InputError
from rst.experiments.sweep import load_table
from rst.report import figures, tables


def main() -> int:
    """Exit status: 0 where the table was written, with or without gaps."""
    parser = argparse.ArgumentParser(description="Write a table and its figure from the run records.")
    parser.add_argument("table", help="a file of configs/tables, without .yaml")
    parser.add_argument("overrides", nargs="*", help="key=value, as given to sweep.py")
    arguments = parser.parse_args()
    try:
        table = load_table(arguments.table, arguments.overrides)
    except InputError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1
    folder = Path(table.cells[0].cfg.paths.runs).parent
    files = [*tables.write(table, folder), *figures.write(table, folder)]
    print(tables.markdown(table))
    print("Written: " + ", ".join(map(str, files)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
