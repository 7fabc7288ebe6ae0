"""The runs on this disk, by their keys: python scripts/runs.py list|show|compare|remove [RUN ...] [key=value ...]

A run is its id, or a part of it; key=value stands for the runs that fit: model=resnet18, seed=0,1, status=done.
"""

import argparse
import signal
import sys
from pathlib import Path

from rst.experiments.compose import compose
from rst.experiments.errors import InputError
from rst.experiments.report import listing
from rst.experiments.runs.catalogue import find
from rst.experiments.runs.record import Record


def main() -> int:
    """The exit status: 0 if the runs were found and, for ``remove``, are gone."""
    parser = argparse.ArgumentParser(description="List, show, compare and remove the runs on this disk.")
    parser.add_argument("action", choices=("list", "show", "compare", "remove"))
    parser.add_argument(
        "words", nargs="*", metavar="RUN", help="an id or a part of one; or key=value, for those that fit"
    )
    parser.add_argument(
        "--mean", action="store_true", help="list: one line for the runs that differ in their seed alone"
    )
    parser.add_argument("--sort", metavar="COLUMN", help=f"list: by one of {', '.join(listing.COLUMNS)}")
    parser.add_argument("--yes", action="store_true", help="remove: without asking")
    arguments = parser.parse_intermixed_args()
    for option, action in (("mean", "list"), ("sort", "list"), ("yes", "remove")):
        if getattr(arguments, option) and arguments.action != action:
            parser.error(f"--{option} is an option of {action}, not of {arguments.action}: leave it out.")
    places = [word for word in arguments.words if word.startswith("paths.")]
    words = [word for word in arguments.words if word not in places]
    if arguments.action in ("show", "compare", "remove") and not words:
        parser.error(f"{arguments.action} what? Write ids, or key=value.")
    try:
        runs = Path(compose(places).paths.runs)
        records = find(runs, words)
        if arguments.action == "list":
            print(listing.listed(records, arguments.mean, arguments.sort), f"{len(records)} runs in {runs}.", sep="\n")
            return 0
        if not records:
            raise InputError(f"no run in {runs} fits {' '.join(words)}: runs.py list shows all.")
        if arguments.action == "remove":
            return remove(records, arguments.yes)
        print(listing.compared(records) if arguments.action == "compare" else "\n".join(map(listing.shown, records)))
    except InputError as error:
        print(f"runs.py: {error}", file=sys.stderr)
        return 1
    return 0


def remove(records: list[Record], yes: bool) -> int:
    """Delete the records, once that is confirmed."""
    if not yes:
        print(*(record.id for record in records), sep="\n")
        try:
            answer = input(f"Delete these {len(records)} runs, with their networks? [y/N] ")
        except EOFError:
            raise InputError("nobody can be asked here: write --yes to delete the runs.") from None
        if answer.strip().lower() not in ("y", "yes"):
            print("Nothing is deleted.")
            return 1
    for record in records:
        record.remove()
    print(f"{len(records)} runs are deleted.")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Hydra takes KeyboardInterrupt for bad input
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # So that `runs.py list | head` ends without a traceback.
    sys.exit(main())
