"""The ranks that train one run together, and what they tell each other."""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from rst.experiments.devices import is_rank, torch_device
from rst.experiments.errors import InputError
from rst.guards import preserved_buffers
from rst.ranks import sum_over_ranks

TIMEOUT = timedelta(minutes=10)
"""How long ranks wait for one that does not answer, before they give up."""

AT_LENGTH = timedelta(days=1)
"""How long ranks wait for what may take long on one of them."""

PATIENCE = 5.0
"""Survivors of a rank wait so many seconds before they end, so that the launcher reports the rank that failed first."""

T = TypeVar("T")


class World:
    """The ranks that train a run together, and this process among them. As it stands: one rank, which asks nobody.

    All ranks must call the methods in the same order.
    """

    rank, size = 0, 1
    local_size = 1
    """Number of ranks on this host."""

    def device(self, name: str) -> torch.device:
        """The device of this rank, where the run asks for devices of this name."""
        return torch_device(name)

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
        """Replace each tensor by its mean over the ranks."""

    def gather(self, value: T) -> list[T]:
        """The value of every rank."""
        return [value]

    def gather_on_first(self, value: T) -> list[T]:
        """The value of every rank on the first one, and an empty list on the others."""
        return [value]

    def scatter(self, values: list[T]) -> T:
        """The value for this rank, of the list that the first rank has."""
        return values[0]

    def first(self, function: Callable[[], T]) -> T:
        """Call a function on the first rank only. All ranks return what it returns, or raise its `InputError`."""
        return function()

    def first_at_length(self, function: Callable[[], T]) -> T:
        """As `first`, for a function that may take longer than `TIMEOUT` and raises no `InputError`."""
        return function()

    @contextmanager
    def host_first(self) -> Iterator[None]:
        """Run the body on one rank of each host before the others, which then find what it has put into caches."""
        yield


ALONE = World()


class Ranks(World):
    """Several ranks. Tensors of the network travel by NCCL on CUDA and by gloo on CPU, the few numbers here by gloo."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.local_rank, self.local_size = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        # A time-out of NCCL ends the process without a word, so that of gloo must come first.
        backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backends, store=store, rank=rank, world_size=size, timeout=2 * TIMEOUT)
        self._long_works = itertools.count()
        self._group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def device(self, name: str) -> torch.device:
        if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
            return device
        return torch_device(name)

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        parallel = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
        # Each rank keeps the statistics of its own images. The argument of this name is deprecated in the newest torch.
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
                answer[1] = type(error), str(error)
        dist.broadcast_object_list(answer, group=self._group)
        if answer[1] is not None:
            kind, sentence = answer[1]
            raise kind(sentence)
        return answer[0]

    def first_at_length(self, function: Callable[[], T]) -> T:
        key, answers = f"long work {next(self._long_works)} of the first rank", []
        if self.rank == 0:
            answers.append(function())
            self.store.set(key, "")
        else:
            self.store.wait([key], AT_LENGTH)
        return self.first(lambda: answers[0])

    @contextmanager
    def host_first(self) -> Iterator[None]:
        key = f"host of rank {self.rank - self.local_rank}"
        if self.local_rank:
            self.store.wait([key], AT_LENGTH)  # The first rank may have to download the images.
        try:
            yield
        finally:
            if not self.local_rank:
                self.store.set(key, "")


@contextmanager
def averaged_buffers(model: nn.Module, world: World) -> Iterator[None]:
    """Inside, buffers are their mean over the ranks, as one device would have them; afterwards each rank's own."""
    with preserved_buffers(model):
        world.average([buffer for buffer in model.buffers() if buffer.is_floating_point()])
        yield


# ------------------------------------------------------------------------------------------------ joining the ranks


@cache
def _rendezvous() -> tuple[Store, int, int]:
    return next(rendezvous("env://"))


_runs = itertools.count()


@contextmanager
def joined(devices: int) -> Iterator[World]:
    """The ranks that this process belongs to, for one run on so many devices.

    A rank that misses another gives up: at once if that one has died, after `TIMEOUT` if it is stuck.

    Raises:
        InputError: a rank is missing (the sentence names it), or there are not as many ranks as devices.
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
        # gloo's errors have no type of their own, but their text names its source file.
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
        return "0"  # The first rank, or the launcher that keeps the store with it, has ended.
