"""Measure what the method costs on this machine: python scripts/bench.py [vectors steps variants loader ...]

Contenders take turns in one process, and figures are ratios: medians over the rounds. Each part writes a JSON file and
a Markdown table to results/bench/<device>/.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from rst.experiments.bench import parts
from rst.experiments.bench.table import Table, write
from rst.experiments.compose import PROJECT
from rst.experiments.devices import torch_device
from rst.experiments.errors import InputError
from rst.experiments.files import writing
from rst.experiments.runs.environment import environment


def main() -> int:
    """The exit status: 0 if all parts are measured and written."""
    parser = argparse.ArgumentParser(
        description="Measure what the method costs on this machine.", usage="%(prog)s [PART ...] [options]"
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts.PARTS)} (default: all)")
    parser.add_argument("--device", default="auto", help="such as cpu or cuda (default: CUDA where there is one)")
    parser.add_argument("--rounds", type=int, help="turns of each contender (default: as many as the part needs)")
    parser.add_argument("--output", type=Path, default=PROJECT / "results" / "bench", help="default results/bench")
    arguments = parser.parse_intermixed_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds}: write a number from 1.")
    try:
        device = torch_device(arguments.device)
        names = parts.chosen(arguments.parts, device)
        folder = parts.folder_of(arguments.output, device)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            begin = time.perf_counter()

            def written(table: Table, begin: float = begin) -> list[Path]:
                return write(table, folder, environment(device), time.perf_counter() - begin)

            table = parts.measure(name, device, arguments.rounds, written)
            print(table.markdown)
            print("Written:", *(folder / f"{name}.{suffix}" for suffix in ("json", "md")), "", sep="\n  ")
    except InputError as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Hydra takes KeyboardInterrupt for bad input.
    sys.exit(main())
