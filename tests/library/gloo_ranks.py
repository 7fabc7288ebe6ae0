"""Runs a function of a test on several ranks, each in a process of its own, connected by gloo."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


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
