"""How long a command takes before it works: importing the library, and train.py up to its first step."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from rst.experiments.bench.table import Row, Table
from rst.experiments.bench.turns import progress
from rst.experiments.compose import PROJECT, compose

IMPORTS = """
import time, torch
begin = time.monotonic()
import rst
print(begin, time.monotonic())
"""
FIRST_STEP = """
import os, runpy, sys, time
from rst.experiments.training.step import TrainingStep

def first_step(*_):
    print(time.monotonic(), flush=True)
    os._exit(0)

TrainingStep.__call__ = first_step
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""
COMMANDS = {
    "train.py scale=cpu": ("scale=cpu",),
    "train.py scale=cpu model=wrn16_1": ("scale=cpu", "model=wrn16_1"),
}


def measure(device: torch.device, rounds: int = 5, commands: Mapping[str, Sequence[str]] = COMMANDS) -> Table:
    """A row for the library, and one for each command of train.py."""
    images, data = cached_images()
    torch_seconds: list[float] = []
    beyond: dict[str, list[float]] = {"import rst": [], **{command: [] for command in commands}}
    with progress("start", rounds) as bar, TemporaryDirectory() as folder:
        own = [f"device={device}", "wandb.mode=disabled", *data]
        for index in range(-1, rounds):  # The round before the first fills the caches of files.
            begin = time.monotonic()
            imported, with_rst = printed(IMPORTS)
            torch_seconds.append(imported - begin)
            beyond["import rst"].append(with_rst - imported)
            for command, overrides in commands.items():
                begin = time.monotonic()
                [first_step] = printed(FIRST_STEP, *overrides, *own, f"paths.runs={folder}/{index}")
                beyond[command].append(first_step - begin - torch_seconds[-1])
            bar.update(index >= 0)
    note = (
        "Wall time beyond that of a Python that only imports torch, in seconds and over it: of the import of the "
        f"library, and of commands up to their first step, on {images}. Each is a process of its own."
    )
    rows: list[Row] = [
        {
            "what": name,
            "seconds_beyond_torch": statistics.median(seconds[1:]),
            "over_import_torch": statistics.median(a / b for a, b in zip(seconds[1:], torch_seconds[1:], strict=True)),
        }
        for name, seconds in beyond.items()
    ]
    return Table("start", "The start of a command", note, rounds, rows)


def cached_images() -> tuple[str, list[str]]:
    """Images that need no search and no download, in words and as overrides: CIFAR-10 from its cache, else digits."""
    if (Path(compose(["scale=cpu"]).paths.cache) / "cifar10.pt").exists():
        return "CIFAR-10 from its cache", []
    return "the embedded digits", ["dataset.source=digits", "dataset.train_images=512", "dataset.test_images=100"]


def printed(code: str, *arguments: str) -> list[float]:
    """The numbers that Python code prints last, in the project's folder."""
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments) or 'import rst'} failed: {done.stderr.strip().splitlines()[-1:]}")
    return [float(number) for number in done.stdout.split()]
