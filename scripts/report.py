"""Write tables and figures from the run records: python scripts/report.py table03 figures [--page] [key=value ...]"""

import argparse
import signal
import sys

from tqdm import tqdm

from rst.experiments.config import InputError, one_sentence
from rst.experiments.sweep import GROUPS, load_tables
from rst.report import figures, page, tables


def main() -> int:
    """Exit status: 0 where all was written, with or without gaps."""
    parser = argparse.ArgumentParser(
        description="Write tables and figures from the run records.", usage="%(prog)s NAME ... [--page] [key=value ...]"
    )
    parser.add_argument("words", nargs="*", metavar="NAME", help="a file of configs/tables, or: tables, figures")
    parser.add_argument(
        "--page", action="store_true", help="and all of them on one page; of tables and figures by default"
    )
    arguments = parser.parse_intermixed_args()
    overrides = [word for word in arguments.words if "=" in word]
    names = [word for word in arguments.words if "=" not in word] or [*GROUPS] * arguments.page
    if not names:
        parser.error("no table: write a file of configs/tables, or tables, or figures.")
    progress = tqdm(load_tables(names, overrides, tqdm.write), desc="load", unit="table", delay=1, leave=False)
    files = []
    try:
        loaded = list(progress)
        if not loaded:
            raise InputError(f"there is no table to write among {' '.join(names)}.")
        for table in loaded:
            figures.check(table)
        for table in tqdm(loaded, desc="report", unit="table"):
            files += tables.write(table)
            files += figures.write(table) if table.draw != "table" else []
        files += [page.write(loaded)] if arguments.page else []
    except (InputError, OSError) as error:
        progress.close()
        print(f"report.py: {one_sentence(error)}", file=sys.stderr)
        return 1
    if len(loaded) == 1:
        print(files[0].read_text(encoding="utf-8"))
    print("Written:", *dict.fromkeys(files), sep="\n  ")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Hydra takes KeyboardInterrupt for bad input
    sys.exit(main())
