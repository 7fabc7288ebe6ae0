"""Contenders take turns within a round, so that a machine that slows down slows all of them alike."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

Step = Callable[[], object]
"""What a contender does once."""

Times = dict[str, list[float]]
"""The seconds that each contender took for one step, in every round."""


def wall_clock(device: torch.device) -> Callable[[], float]:
    """A clock of the time that passes, read when the device has done its work."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch's operators run on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def progress(name: str, rounds: int) -> tqdm:
    """The progress bar of a part, which has so many rounds in all."""
    return tqdm(total=rounds, desc=name, unit="round", file=sys.stderr, dynamic_ncols=True)


def take_turns(
    contenders: Mapping[str, Step], rounds: int, clock: Callable[[], float], bar: tqdm, steps: int = 1
) -> Times:
    """Let each contender make ``steps`` steps in every round, after one step that is not timed."""
    for step in contenders.values():
        step()
    times: Times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            times[name].append(seconds(step, clock, steps))
        bar.update()
    return times


def seconds(step: Step, clock: Callable[[], float], steps: int = 1) -> float:
    """How many seconds a step takes, as the mean of so many."""
    begin = clock()
    for _ in range(steps):
        step()
    return (clock() - begin) / steps


def median_ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """The median over the rounds of the ratio of the two times of a round."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


class Operations(TorchDispatchMode):
    """Inside, counts the operations that torch dispatches; a ``_foreach_`` operation on many tensors is one."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += function.namespace != "profiler"  # Optimizers mark their work for a profiler.
        return function(*args, **(kwargs or {}))


def operations(step: Step) -> int:
    """How many operations a step dispatches."""
    with Operations() as counted:
        step()
    return counted.count
