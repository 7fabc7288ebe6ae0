"""One run on several devices: how its ranks start, what they tell each other, how they end together."""

import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from rst.experiments.config import InputError, torch_device
from rst.guards import kept_buffers, sum_over_ranks
from rst.training.progress import Interrupted, stop_requests

TIMEOUT = timedelta(minutes=10)
"""How long ranks wait for one that does not answer, before they give up."""

PATIENCE = 5.0
"""Seconds in which a rank that misses another does not end, so that the one that failed first is seen first."""

START_METHOD = "spawn"

T = TypeVar("T")


class World:
    """The ranks that train a run together, and this process among them: as it stands, alone, asking nobody.

    All ranks must call its methods in the same order.
    """

    rank, size = 0, 1
    local_size = 1
    """Ranks on this host."""

    def device(self, cfg: DictConfig) -> torch.device:
        """The device of this rank."""
        return torch_device(cfg)

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model as it is called in training, so that gradients are averaged over the ranks."""
        return model

    def max(self, *values: float) -> list[float]:
        """The largest of each value over the ranks."""
        return list(values)

    def sum(self, *values: float) -> list[float]:
        """The sum of each value over the ranks."""
        return list(values)

    def average(self, tensors: list[Tensor]) -> None:
        """Put the mean over the ranks in the place of each tensor."""

    def gather(self, value: T) -> list[T]:
        """The value of every rank."""
        return [value]

    def gather_on_first(self, value: T) -> list[T]:
        """The value of every rank on the first one, nothing on the others."""
        return [value]

    def scatter(self, values: list[T]) -> T:
        """The value for this rank, of the list that the first one has."""
        return values[0]

    def first(self, function: Callable[[], T]) -> T:
        """Call a function on the first rank only; its result, or the `InputError` it raised, is that of all."""
        return function()

    @contextmanager
    def host_first(self) -> Iterator[None]:
        """The body on one rank of each host before the others, which find what it put into caches and show no bars."""
        yield


ALONE = World()


class Ranks(World):
    """Several ranks. Tensors of the network meet by NCCL on CUDA and by gloo on CPU, the few numbers here by gloo."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.local_rank, self.local_size = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        # NCCL's time-out ends a process without a word: gloo's must come first.
        backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backends, store=store, rank=rank, world_size=size, timeout=2 * TIMEOUT)
        self._group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def device(self, cfg: DictConfig) -> torch.device:
        if cfg.device == "cuda" or (cfg.device == "auto" and torch.cuda.is_available()):
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
            return device
        return torch_device(cfg)

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        parallel = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
        # Each rank keeps the statistics of its own images. As an argument this is deprecated in the newest torch.
        parallel.broadcast_buffers = False
        return parallel

    def max(self, *values: float) -> list[float]:
        return self._reduced(dist.ReduceOp.MAX, values)

    def sum(self, *values: float) -> list[float]:
        return self._reduced(dist.ReduceOp.SUM, values)

    def _reduced(self, operation: Any, values: Sequence[float]) -> list[float]:
        vector = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(vector, operation, group=self._group)
        return vector.tolist()

    def average(self, tensors: list[Tensor]) -> None:
        if tensors:
            sum_over_ranks(tensors)
            torch._foreach_div_(tensors, self.size)

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def gather_on_first(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size if self.rank == 0 else []
        dist.gather_object(value, values or None, group=self._group)
        return values

    def scatter(self, values: list[T]) -> T:
        own: list[Any] = [None]
        dist.scatter_object_list(own, values or None, group=self._group)
        return own[0]

    def first(self, function: Callable[[], T]) -> T:
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = function()
            except InputError as error:
                answer[1] = str(error)
        dist.broadcast_object_list(answer, group=self._group)
        if answer[1] is not None:
            raise InputError(answer[1])
        return answer[0]

    @contextmanager
    def host_first(self) -> Iterator[None]:
        key = f"host of rank {self.rank - self.local_rank}"
        if self.local_rank:
            self.store.wait([key], timedelta(days=1))  # a download takes what it takes
        try:
            yield
        finally:
            if not self.local_rank:
                self.store.set(key, "")


@contextmanager
def averaged_buffers(model: nn.Module, world: World) -> Iterator[None]:
    """Inside, buffers are their mean over the ranks, as one device would have them; afterwards each rank's own."""
    with kept_buffers(model):
        world.average([buffer for buffer in model.buffers() if buffer.is_floating_point()])
        yield


# ------------------------------------------------------------------------------------------------ joining the ranks


def is_rank() -> bool:
    """Whether torch's launcher, ours or ``torchrun``, has made this process one of its ranks."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= os.environ.keys()


@cache
def _rendezvous() -> tuple[Store, int, int]:
    return next(rendezvous("env://"))


_runs = itertools.count()


@contextmanager
def joined(devices: int) -> Iterator[World]:
    """The ranks that this process is one of, for one run.

    A rank that misses another gives up, at once if that one has died and after `TIMEOUT` if it is stuck: then each
    raises an `InputError` with the numbers of those that are missing.
    """
    if not is_rank():
        yield ALONE
        return
    whole_store, rank, size = _rendezvous()
    store = PrefixStore(f"run {next(_runs)}", whole_store)
    try:
        if devices != size:
            raise InputError(f"devices={devices}, but torch's launcher has started {size} ranks: leave devices out.")
        yield Ranks(store, rank, size) if size > 1 else ALONE
    except InputError as error:
        error.repeated = store.add("errors", 1) > 1
        raise
    except Exception as error:
        # gloo has no type of its own for errors, but names its source file.
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise InputError(
            f"rank {_missing(store, rank, size)} of {size} has ended or does not answer: the same command goes on "
            "from the last checkpoint."
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _missing(store: Store, rank: int, size: int) -> str:
    """The ranks that do not say, within `PATIENCE`, that they miss another one as this rank does."""
    try:
        store.set(f"rank {rank} misses another", "")
        time.sleep(PATIENCE)
        return ", ".join(str(r) for r in range(size) if not store.check([f"rank {r} misses another"])) or "unknown"
    except dist.DistError:
        return "0"  # or the launcher with which it keeps the store


# ----------------------------------------------------------------------------------------------- starting the ranks


def launch(function: Callable[..., T], count: int, *arguments: Any) -> T:
    """Call a function on ``count`` new ranks of this host, by torch's elastic launcher; what the first one returns.

    A request to stop is passed on to the ranks, which stop together. Only the first rank's output is seen.
    Raises `Interrupted` like the ranks, and `InputError` with the last words of the one that failed first.
    """
    requests: list[int] = []
    others = set(multiprocessing.active_children())

    def pass_on(number: int) -> None:
        requests.append(number)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()

    threads = max(1, torch.get_num_threads() // count)
    with TemporaryDirectory() as folder, stop_requests(pass_on):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            start_method=START_METHOD,
            logs_specs=DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(1, count), Std.ALL)),
            signals_to_handle="",  # its own handler would kill the ranks after 30 seconds
        )
        logging.disable()  # the launcher's own account of what is raised here
        try:
            outcome = elastic_launch(config, _on_rank)(function, threads, arguments)[0]
        except ChildFailedError as error:
            if requests:
                raise Interrupted("stopped; the same command goes on from the last checkpoint.", requests[0]) from None
            rank, failure = error.get_first_failure()
            if rank == 0 and failure.exitcode < 0:
                print(file=sys.stderr)  # it can no more end the line of its bar
            raise _last_words(rank, failure, count) from None
        finally:
            logging.disable(logging.NOTSET)
    if isinstance(outcome, Interrupted):
        raise Interrupted(str(outcome), requests[0] if requests else outcome.signal_number)
    return outcome


def _on_rank(function: Callable[..., T], threads: int, arguments: Sequence[Any]) -> T | Interrupted:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the launcher takes a rank that KeyboardInterrupt ends for a success
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        return function(*arguments)
    except Interrupted as stop:
        return stop


def _last_words(rank: int, failure: ProcessFailure, count: int) -> Exception:
    """What a failed rank wrote to the launcher, or how it ended."""
    words: Any = failure.message
    if isinstance(words, dict):
        kind, _, sentence = words["message"].partition(": ")
        if kind == InputError.__name__:
            return InputError(sentence)
        return RuntimeError(f"rank {rank} of {count} failed.\n{words['extraInfo']['py_callstack']}")
    how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"exited with {failure.exitcode}"
    return InputError(f"rank {rank} of {count} {how}: the same command goes on from the last checkpoint.")


def end_with_parent() -> None:
    """For a thread: where the process that started this one dies, stop the run, and end in a minute at the latest."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    os._exit(1)
