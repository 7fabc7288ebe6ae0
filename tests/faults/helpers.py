"""Processes that are killed, SIGKILL, at a moment that a test draws: by the clock, or before and after what they do."""

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
from omegaconf import DictConfig

from rst.data import cifar
from rst.experiments.record import Record
from rst.experiments.sweep import Job
from rst.training import distributed, loop, run, runner, train


class Moments:
    """Counts the moments of this process; at one of them the process is killed (0: at none)."""

    def __init__(self, last: int) -> None:
        self.count, self.last = 0, last

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class InHalves:
    """A file that a process may be killed at before, in the middle of and after each write."""

    def __init__(self, file: Any, moments: Moments) -> None:
        self._file, self._moments = file, moments

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "InHalves":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def write(self, content: Any) -> int:
        self._moments()
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        self._moments()
        self._file.write(content[len(content) // 2 :])
        return len(content)


def in_halves(original: Callable[..., Any], moments: Moments) -> Callable[..., Any]:
    """`open`, whose files are written `InHalves`."""

    def opened(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        file = original(path, mode, *more, **named)
        return InHalves(file, moments) if mode[0] in "wa" else file

    return opened


def with_moments(last: int) -> Moments:
    """Makes moments of this process before and after each step, evaluation, write, fsync and rename."""

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
    cifar.open = in_halves(open, moments)  # type: ignore[attr-defined]
    return moments


def with_checkpoints_of_every_epoch() -> None:
    """By a clock that stands still, so that a checkpoint costs nothing; otherwise short runs have two of them."""
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
    """Calls a function in a process that is killed at its moment ``last``, or ``after`` so many seconds."""
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


def train_quietly(cfg: DictConfig, every_epoch: bool = False) -> Record:
    """The run, on one thread."""
    torch.set_num_threads(1)
    if every_epoch:
        with_checkpoints_of_every_epoch()
    return train(cfg, show_progress=False)


# ------------------------------------------------------------------------------------------------- one rank of several


def train_rank(cfg: DictConfig, every_epoch: bool, last: int) -> tuple[int, float]:
    """The run on this rank, which is killed at a moment; how many moments it has had, and how many seconds."""
    distributed.PATIENCE = 0.5
    moments, begin = with_moments(last), time.monotonic()
    train_quietly(cfg, every_epoch)
    return moments.count, time.monotonic() - begin


def train_py_with_kill(overrides: list[str], output: Path, rank: int, last: int, after: float) -> None:
    """``python train.py *overrides``, by whose launcher one rank is killed at a moment, or after so many seconds."""
    distributed.START_METHOD = "forkserver"
    launch = loop.launch
    loop.launch = lambda function, count, *arguments: launch(_on_rank, count, rank, last, after, function, arguments)
    train_py(overrides, output)


def _on_rank(rank: int, last: int, after: float, function: Callable[..., Any], arguments: tuple) -> Any:
    if int(os.environ["RANK"]) == rank:
        with_moments(last)
        clock = threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL))
        clock.daemon = True
        clock.start()
    with_checkpoints_of_every_epoch()
    distributed.PATIENCE = 0.5
    return function(*arguments)


# ------------------------------------------------------------------------------------------------------------ sweeps


def run_and_kill_workers(jobs: list[Job], folder: Path, waits: list[float]) -> None:
    """The sweep by two workers, of which one is killed so long after a start, of each of some waits in seconds.

    Starts and kills are noted in starts.txt and kills.txt.
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
    runner.get_context = lambda _: PROCESSES
    runner.SECONDS_BETWEEN_LOOKS = 0.05
    runner._train = _noted
    threading.Thread(target=kill_workers, daemon=True).start()
    run(jobs, workers=2)


def starts_in(folder: Path) -> int:
    """Runs that have started there so far."""
    notes = folder / "starts.txt"
    return len(notes.read_text().splitlines()) if notes.exists() else 0


_TRAIN, _TO_THE_END = runner._train, loop.Run.to_the_end


def _noted(cfg: DictConfig) -> str | None:
    """Trains in a worker, with a note of each run that starts, and whether it was done already."""

    def noted(own: loop.Run) -> None:
        with (Path(cfg.paths.runs).parent / "starts.txt").open("a") as file:
            file.write(f"{own.record.id} {'again' if own.record.done else 'undone'}\n")
        _TO_THE_END(own)

    loop.Run.to_the_end = noted
    return _TRAIN(cfg)


def drawing(*key: Any) -> random.Random:
    """Random numbers of a key, the same in every session."""
    return random.Random(repr(key))
