"""The parts of the benchmark by name, and where their figures go."""

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import torch

from rst.experiments.bench.table import Table
from rst.experiments.errors import InputError

CUDA_ONLY = "recipes"
PARTS = ("vectors", "steps", "variants", "loader", "epoch", "start", "sweep", CUDA_ONLY)
"""Each is the name of a module in this folder, whose ``measure(device, rounds)`` returns the part's table."""


def chosen(names: Sequence[str], device: torch.device) -> list[str]:
    """The parts of these names; without names all that can run on the device.

    Raises:
        InputError: there is no part of a name, or it does not run on this device.
    """
    for name in names:
        if name not in PARTS:
            raise InputError(f"there is no part {name}: write some of {' '.join(PARTS)}, or none for all.")
    if device.type != "cuda":
        if CUDA_ONLY in names:
            raise InputError(
                f"{CUDA_ONLY} trains the paper's full-size networks, which needs a GPU: leave it out, or take a "
                "machine with CUDA."
            )
        names = names or [name for name in PARTS if name != CUDA_ONLY]
    return list(dict.fromkeys(names or PARTS))


def measure(name: str, device: torch.device, rounds: int | None, written: Callable[[Table], object]) -> Table:
    """The table of a part, over so many rounds; None: as many as are usual for it.

    ``written`` gets it, and that of `CUDA_ONLY`, which takes long, also while it grows.
    """
    part: Callable[..., Table] = import_module(f"rst.experiments.bench.{name}").measure
    own = {} if rounds is None else {"rounds": rounds}
    table = part(device, **own, **({"written": written} if name == CUDA_ONLY else {}))
    written(table)
    return table


def folder_of(results: Path, device: torch.device) -> Path:
    """The folder for figures of a device: ``cpu``, or the GPU's name in small letters and hyphens."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return results / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
