"""Write tables and figures from the run records: python scripts/report.py table03 claims [--page] [key=value ...]"""

import argparse
import signal
import sys

from tqdm import tqdm

from rst.experiments.errors import InputError, one_sentence
from rst.experiments.report import claims_page
from rst.experiments.report.files import write
from rst.experiments.tables.claims import CLAIMS
from rst.experiments.tables.expansion import COLLECTIONS, load_tables


def main() -> int:
    """The exit status: 0 if all files are written, whether or not runs are missing."""
    parser = argparse.ArgumentParser(
        description="Write tables and figures from the run records.", usage="%(prog)s NAME ... [--page] [key=value ...]"
    )
    parser.add_argument(
        "words", nargs="*", metavar="NAME", help="a file of configs/tables, or: tables, figures, claims"
    )
    parser.add_argument(
        "--page", action="store_true", help="also write one page with all of them (default: tables figures)"
    )
    parser.add_argument("--prune", action="store_true", help="drop runs from records.csv that have no record here")
    arguments = parser.parse_intermixed_args()
    overrides = [word for word in arguments.words if "=" in word]
    with_claims = CLAIMS in arguments.words
    names = [word for word in arguments.words if "=" not in word and word != CLAIMS] or [*COLLECTIONS] * arguments.page
    if not names and not with_claims:
        parser.error("no table: write a file of configs/tables, or tables, or figures.")
    progress = tqdm(load_tables(names, overrides, tqdm.write), desc="load", unit="table", delay=1, leave=False)
    try:
        loaded = list(progress)
        if not loaded and not with_claims:
            raise InputError(f"there is no table to write among {' '.join(names)}.")
        verdicts = claims_page.opening(overrides) if arguments.page else []
        page_by = " ".join(["python scripts/report.py", *arguments.words, "--page"]) if arguments.page else ""
        files = write(loaded, page_by, arguments.prune, tqdm.write, verdicts)
        files += claims_page.write(overrides, tqdm.write) if with_claims else []
    except (InputError, OSError) as error:
        progress.close()
        print(f"report.py: {one_sentence(error)}", file=sys.stderr)
        return 1
    if len(loaded) == 1:
        print(files[0].read_text(encoding="utf-8"))
    print("Written:", *files, sep="\n  ")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Hydra takes KeyboardInterrupt for bad input
    sys.exit(main())
