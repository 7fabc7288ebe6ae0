"""Whether the ranks of a run train the same run: they compare what determines it, and stop where it differs."""

from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rst
from rst.experiments.data.loader import order_of_epoch
from rst.experiments.data.run_data import RunData
from rst.experiments.errors import InputError
from rst.experiments.spec import RunSpec
from rst.experiments.training.ranks import World

PACKAGE = Path(rst.__file__).parent

OF_A_HOST = ("device", "dataset.root", "dataset.source", "model.pretrained")
"""Keys that may differ from host to host; so may those of the groups ``paths`` and ``wandb``."""

FIXES = {
    "the code": "install one version of it on all hosts",
    "torch": "install one version of it on all hosts",
    "the kind of device": "write device=cpu or device=cuda",
    "the data": "copy the same files to all hosts",
    "the weights": "the same command goes on from the last checkpoint",
}


def compare(world: World, facts: Callable[[], dict[str, Any]], when: str = "") -> None:
    """Raise `InputError` on all ranks where a fact is not the same on all.

    The sentence names the fact and a rank in the minority. A run of one rank does not compute its facts.
    """
    if world.size == 1:
        return
    facts_of_ranks = world.gather(facts())
    for name in dict.fromkeys(name for facts_of_one in facts_of_ranks for name in facts_of_one):
        values = [facts_of_one.get(name) for facts_of_one in facts_of_ranks]
        usual = max(values, key=values.count)
        for rank, value in enumerate(values):
            if value != usual:
                raise InputError(
                    f"the ranks differ{when} in {name}: {value} on rank {rank}, {usual} on rank "
                    f"{values.index(usual)}; {FIXES.get(name, 'start all ranks with the same command')}."
                )


def facts_of_a_run(spec: RunSpec, device: torch.device, data: RunData, model: nn.Module) -> dict[str, Any]:
    """What determines a run: its keys, the code, the images and their order, the initial weights."""
    orders = [order_of_epoch(len(data.train), spec.seed, epoch) for epoch in range(2)]
    return {
        **{
            key: value
            for key, value in spec.flat().items()
            if key not in OF_A_HOST and not key.startswith(("paths.", "wandb."))
        },
        "the code": digest_of_code(PACKAGE),
        "torch": torch.__version__,
        "the kind of device": device.type,
        "the data": f"{data.source.digest[:12]} {digest([data.train.labels])}",
        "the order of the images": digest(orders),
        "the initial weights": digest(model.parameters()),
    }


def digest(tensors: Iterable[Tensor]) -> str:
    """Twelve hexadecimal digits of the SHA-256 over the bytes of tensors."""
    state = sha256()
    for tensor in tensors:
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()[:12]


def digest_of_code(folder: Path) -> str:
    """Twelve hexadecimal digits of the SHA-256 over the source files of a package, with their names."""
    state = sha256()
    for file in sorted(folder.rglob("*.py")):
        state.update(f"{file.relative_to(folder).as_posix()}\0".encode() + file.read_bytes())
    return state.hexdigest()[:12]
