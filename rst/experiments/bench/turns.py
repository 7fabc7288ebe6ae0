"""Contenders take turns within a round, so that a machine that slows down slows all of them alike."""

import statistics
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
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


class NewMemory(TorchDispatchMode):
    """Inside, ``made`` are the bytes of all new tensors that are large, and ``peak`` the most that exist at once."""

    def __init__(self, at_least: int = 0) -> None:
        super().__init__()
        self.at_least, self.made, self.now, self.peak = at_least, 0, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if size < self.at_least or key in self._known:
            return
        self._known.add(key)
        self.made += size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
