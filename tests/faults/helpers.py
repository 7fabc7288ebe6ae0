"""Processes that are killed by SIGKILL, either after some seconds or at a moment.

A process has a moment just before and after each step, evaluation, fsync and rename, and before, within and after each
write. Its moments are numbered from 1, in the order in which it comes to them.
"""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import wraps
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from conftest import PROCESSES, train_py

from rst.experiments.data import cache
from rst.experiments.launch import local
from rst.experiments.runs.record import Record
from rst.experiments.spec import RunSpec
from rst.experiments.tables.expansion import PlannedRun
from rst.experiments.training import loop, ranks, spawn, train


class Moments:
    """Counts the moments of this process, and kills it at moment number ``last``; at none where that is 0."""

    def __init__(self, last: int) -> None:
        self.count, self.last = 0, last

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class InHalves:
    """A file with a moment before, in the middle of and after each write."""

    def __init__(self, file: Any, moments: Moments) -> None:
        self._file, self._moments = file, moments

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "InHalves":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def write(self, content: Any) -> int:
        """Write the content in two halves."""
        self._moments()
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        self._moments()
        self._file.write(content[len(content) // 2 :])
        return len(content)


def in_halves(original: Callable[..., Any], moments: Moments) -> Callable[..., Any]:
    """A function like `open`, whose files are written `InHalves`."""

    def opened(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        file = original(path, mode, *more, **named)
        return InHalves(file, moments) if mode[0] in "wa" else file

    return opened


def with_moments(last: int) -> Moments:
    """Make moments of this process, of which number ``last`` kills it, before and after all that matters."""

    def between(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def function(*arguments: Any, **named: Any) -> Any:
            moments()
            result = original(*arguments, **named)
            moments()
            return result

        return function

    moments = Moments(last)
    places: tuple[tuple[Any, str], ...] = ((os, "fsync"), (os, "replace"), (loop.Progress, "step"), (loop, "evaluate"))
    for place, name in places:
        setattr(place, name, between(getattr(place, name)))
    Path.open = in_halves(Path.open, moments)  # type: ignore[method-assign]
    cache.open = in_halves(open, moments)  # type: ignore[attr-defined]
    return moments


def with_checkpoints_of_every_epoch() -> None:
    """Make this process write a checkpoint after every epoch; otherwise short runs write only two.

    The loop's clock stands still, so that a checkpoint seems to cost nothing.
    """
    loop.time = SimpleNamespace(monotonic=lambda: 0.0, perf_counter=time.perf_counter)


def moments_of(function: Callable[..., Any], *arguments: Any) -> tuple[int, float]:
    """How many moments a process has that calls a function, and how many seconds it takes."""
    answer, end = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_count, args=(end, function, arguments))
    begin = time.monotonic()
    process.start()
    end.close()
    count = answer.recv()
    process.join()
    return count, time.monotonic() - begin


def _count(end: Connection, function: Callable[..., Any], arguments: tuple) -> None:
    moments = with_moments(0)
    function(*arguments)
    end.send(moments.count)


def killed(function: Callable[..., Any], *arguments: Any, last: int = 0, after: float = 120.0) -> bool:
    """Call a function in a process that is killed at moment ``last`` or after so many seconds, if it lasts that long.

    Returns whether it was killed.
    """
    process = PROCESSES.Process(target=_until, args=(last, function, arguments))
    process.start()
    process.join(after)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), "the process failed by itself"
    return process.exitcode != 0


def _until(last: int, function: Callable[..., Any], arguments: tuple) -> None:
    with_moments(last)
    function(*arguments)


def train_quietly(spec: RunSpec, every_epoch: bool = False) -> Record:
    """Train the run on one thread, with a checkpoint after every epoch if ``every_epoch``."""
    torch.set_num_threads(1)
    if every_epoch:
        with_checkpoints_of_every_epoch()
    return train(spec, show_progress=False)


# ------------------------------------------------------------------------------------------------- one rank of several


def train_rank(spec: RunSpec, every_epoch: bool, last: int) -> tuple[int, float]:
    """Train the run on this rank, which is killed at moment ``last``; how many moments and seconds it has taken."""
    ranks.PATIENCE = 0.5
    moments, begin = with_moments(last), time.monotonic()
    train_quietly(spec, every_epoch)
    return moments.count, time.monotonic() - begin


def train_py_with_kill(overrides: list[str], output: Path, rank: int, last: int, after: float) -> None:
    """Run ``python train.py *overrides``, of whose ranks one is killed at moment ``last`` or after so many seconds."""
    spawn.START_METHOD = "forkserver"
    original = loop.spawn
    loop.spawn = lambda function, count, *arguments: original(_on_rank, count, rank, last, after, function, arguments)
    train_py(overrides, output)


def _on_rank(rank: int, last: int, after: float, function: Callable[..., Any], arguments: tuple) -> Any:
    if int(os.environ["RANK"]) == rank:
        with_moments(last)
        clock = threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL))
        clock.daemon = True
        clock.start()
    with_checkpoints_of_every_epoch()
    ranks.PATIENCE = 0.5
    return function(*arguments)


# -------------------------------------------------------------------------------------------------------------- sweeps


def sweep_and_kill_workers(runs: list[PlannedRun], folder: Path, waits: list[float]) -> None:
    """Train the runs by two workers. For each of ``waits``, kill a worker so many seconds after a run has started.

    starts.txt has a line for each start of a run, and kills.txt one for each kill.
    """

    def kill_workers() -> None:
        for wait in waits:
            before = starts_in(folder)
            while starts_in(folder) == before:
                time.sleep(0.02)
            time.sleep(wait)
            if workers := multiprocessing.active_children():
                workers[int(1000 * wait) % len(workers)].kill()
                with (folder / "kills.txt").open("a") as file:
                    file.write("worker\n")

    with (folder / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    local.get_context = lambda _: PROCESSES
    local.SECONDS_BETWEEN_LOOKS = 0.05
    local._train = _train_and_note
    threading.Thread(target=kill_workers, daemon=True).start()
    local.run(runs, workers=2)


def starts_in(folder: Path) -> int:
    """How many runs have been started there so far."""
    notes = folder / "starts.txt"
    return len(notes.read_text().splitlines()) if notes.exists() else 0


_TRAIN, _TO_THE_END = local._train, loop.Run.to_the_end


def _train_and_note(spec: RunSpec) -> str | None:
    """Train in a worker, and note each run that is started, and whether it was done already."""

    def noted(own: loop.Run) -> None:
        with (Path(spec.paths.runs).parent / "starts.txt").open("a") as file:
            file.write(f"{own.record.id} {'done' if own.record.done else 'undone'}\n")
        _TO_THE_END(own)

    loop.Run.to_the_end = noted
    return _TRAIN(spec)


def drawing(*key: Any) -> random.Random:
    """A source of random numbers that are the same in every session for the same key."""
    return random.Random(repr(key))
