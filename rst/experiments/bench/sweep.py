"""What a sweep of many short runs costs beyond their training."""

import io
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from rst.experiments.bench.start import printed
from rst.experiments.bench.table import Row, Table
from rst.experiments.bench.turns import one_thread, progress
from rst.experiments.compose import compose
from rst.experiments.launch import local
from rst.experiments.runs.record import open_record
from rst.experiments.spec import RunSpec
from rst.experiments.tables.expansion import PlannedRun
from rst.experiments.training import checkpoint, loop, train
from rst.experiments.training.state import TrainingState
from rst.experiments.training.step import TrainingStep

RUNS, SECONDS, WORKERS = 100, 3.0, 2
"""The sweep that the shares are of: so many runs, of so much training each, by so many workers."""
SETTINGS = ("dataset=digits", "model=wrn10_1", "scheme=rst", "scale=digits")
TABLE = ("table03", "scale=digits")
COMPOSING = """
import sys, time
from rst.experiments.tables.estimate import forecast
from rst.experiments.tables.expansion import load_table, runs_of
begin = time.monotonic()
runs = runs_of([load_table(sys.argv[1], sys.argv[2:])])
forecast(runs, 1, False)
print((time.monotonic() - begin) / len(runs))
"""
PARTS: dict[str, Sequence[tuple[Any, str]]] = {
    "network, images and method": [(loop.Run, "__init__")],
    "warm-up": [(TrainingStep, "warm_up")],
    "evaluation": [(loop, "evaluate")],
    "checkpoints": [(TrainingState, "save"), (checkpoint, "cut")],
}
"""The parts of a run beyond its training: the functions that are theirs. What is left is the work on the record."""
NOTE = (
    f"Milliseconds a run beyond its training, and their share in a sweep of {RUNS} runs of {SECONDS:g} s of training "
    f"by {WORKERS} workers. Composing is that of all runs of {TABLE[0]} at scale=digits in a new process, with their "
    "forecast, for which all workers wait; a worker starts once, and imports what its first run needs; the rest is "
    "that of a whole run of a WRN-10-1 at scale=digits on one thread, in a process that has had a run before."
)


def measure(
    device: torch.device, rounds: int = 3, settings: Sequence[str] = SETTINGS, table: Sequence[str] = TABLE
) -> Table:
    """A row for each part of the cost, and one for their sum."""
    milliseconds: dict[str, list[float]] = defaultdict(list)
    with progress("sweep", rounds) as bar, TemporaryDirectory() as folder:
        seeds = itertools.count()

        def new_run(*more: str) -> RunSpec:
            own = [f"device={device}", "wandb.mode=disabled", f"paths.runs={folder}", f"seed={next(seeds)}"]
            return compose([*settings, *own, *more])

        seconds_beyond_training(new_run())  # The first run of a process imports what the later ones find.
        for _ in range(rounds):
            milliseconds["composing"] += [1000 * WORKERS * seconds for seconds in printed(COMPOSING, *table)]
            milliseconds["start of the workers"].append(1000 * WORKERS / RUNS * seconds_of_a_start(new_run))
            for name, seconds in seconds_beyond_training(new_run()).items():
                milliseconds[name].append(1000 * seconds)
            bar.update()
    milliseconds["all"] = [sum(values) for values in zip(*milliseconds.values(), strict=True)]
    rows: list[Row] = [
        {
            "what": name,
            "milliseconds_a_run": statistics.median(values),
            "percent_of_the_training": statistics.median(values) / SECONDS / 10,
        }
        for name, values in milliseconds.items()
    ]
    return Table("sweep", "The cost of a sweep beyond training", NOTE, rounds, rows)


def seconds_beyond_training(spec: RunSpec) -> dict[str, float]:
    """Train a run on one thread, as a worker does; the seconds of each of its `PARTS`, and of "records", the rest."""
    with one_thread(), timed(PARTS) as seconds:
        begin = time.perf_counter()
        summary = train(spec, show_progress=False).summary
        total = time.perf_counter() - begin
    return {**seconds, "records": total - summary["train_seconds"] - sum(seconds.values())}


@contextmanager
def timed(parts: dict[str, Sequence[tuple[Any, str]]]) -> Iterator[dict[str, float]]:
    """Inside, the seconds add up that the functions of each part take."""
    seconds = dict.fromkeys(parts, 0.0)

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - begin

        return call

    with ExitStack() as stack:
        for name, functions in parts.items():
            for owner, function in functions:
                stack.enter_context(patch.object(owner, function, counted(name, getattr(owner, function))))
        yield seconds


def seconds_of_a_start(new_run: Callable[..., RunSpec]) -> float:
    """How long a sweep by one worker takes before its first run: that of one run, less what each further run takes."""
    one, three = (seconds_of_a_sweep([new_run("recipe.epochs=1") for _ in range(count)]) for count in (1, 3))
    return one - (three - one) / 2


def seconds_of_a_sweep(specs: Sequence[RunSpec]) -> float:
    """Train runs by one worker, whose bar and counts are not shown."""
    runs = [PlannedRun(spec, open_record(spec)) for spec in specs]
    begin = time.perf_counter()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        failures = local.run(runs, workers=1)
    if failures:
        raise RuntimeError(failures[0])
    return time.perf_counter() - begin
