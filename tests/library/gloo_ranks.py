"""Runs a function of a test on several ranks, each in a process of its own, connected by gloo."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def results_of_ranks(function: Callable[[int], Any], count: int, folder: Path) -> list[Any]:
    """What ``function(rank)`` returns on each of ``count`` ranks: tensors, plain values, and lists and dicts of them.

    The ranks meet and leave their results in ``folder``, which must be empty. The function must be importable.
    """
    torch.multiprocessing.spawn(_run, (function, count, str(folder)), nprocs=count)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _run(rank: int, function: Callable[[int], Any], count: int, folder: str) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count, timeout=timeout
    )
    torch.save(function(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@contextmanager
def counted_messages() -> Iterator[list[int]]:
    """The sizes of all tensors that are summed over the ranks inside by ``dist.all_reduce``.

    `DistributedDataParallel` averages gradients in this way if ``allreduce_hook`` is registered with it.
    """
    sizes, real = [], dist.all_reduce

    def all_reduce(tensor: Tensor, *args: object, **kwargs: object) -> object:
        sizes.append(tensor.numel())
        return real(tensor, *args, **kwargs)

    dist.all_reduce = all_reduce
    try:
        yield sizes
    finally:
        dist.all_reduce = real


def refusal(case: Callable[[], object]) -> str:
    """What an error of bad input says, or that there was none."""
    try:
        case()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"
