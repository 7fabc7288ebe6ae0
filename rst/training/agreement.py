"""What ranks agree on: that they train the same run, and when to look up from it."""

import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import rst
from rst.data.loader import order_of_epoch
from rst.experiments.config import InputError
from rst.training.data import RunData
from rst.training.distributed import World

PACKAGE = Path(rst.__file__).parent

OF_A_HOST = ("device", "paths", "dataset.root", "dataset.source", "wandb")
"""Keys that may differ from host to host."""

REMEDIES = {
    "the code": "install one version of it on all hosts",
    "torch": "install one version of it on all hosts",
    "the kind of device": "write device=cpu or device=cuda",
    "the data": "copy the same files to all hosts",
    "the weights": "the same command goes on from the last checkpoint",
}


def compare(world: World, facts: Callable[[], dict[str, Any]], when: str = "") -> None:
    """Raise `InputError`, on all ranks, where a fact is not the same on all; a rank alone does not even compute them.

    It names the rank, of those that are fewer, and what differs.
    """
    if world.size == 1:
        return
    everybody = world.gather(facts())
    for name in dict.fromkeys(name for facts_of_one in everybody for name in facts_of_one):
        values = [facts_of_one.get(name) for facts_of_one in everybody]
        usual = max(values, key=values.count)
        for rank, value in enumerate(values):
            if value != usual:
                remedy = REMEDIES.get(name, "start all ranks with the same command")
                raise InputError(
                    f"the ranks differ{when} in {name}: {value} on rank {rank}, {usual} on rank "
                    f"{values.index(usual)}; {remedy}."
                )


def facts_of_a_run(cfg: DictConfig, device: torch.device, data: RunData, model: nn.Module) -> dict[str, Any]:
    """What determines a run: its config, the code, the data and their order, the initial weights."""
    orders = [order_of_epoch(len(data.train), cfg.seed, epoch) for epoch in range(2)]
    return {
        **dict(_flat(OmegaConf.to_container(cfg))),
        "the code": digest_of_code(PACKAGE),
        "torch": torch.__version__,
        "the kind of device": device.type,
        "the data": f"{data.source.digest[:12]} {digest([data.train.labels])}",
        "the order of the images": digest(orders),
        "the initial weights": digest(model.parameters()),
    }


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if any(key == name or key.startswith(f"{name}.") for name in OF_A_HOST):
        return
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


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


class Lookout:
    """Looks up from the work, at the same step on all ranks: is there a request to stop, is the loss still finite?

    Alone, it sees a request at once, and looks at the loss, which waits for the device, every 2 seconds. Ranks look
    after as many steps as the fastest of them makes in 2 seconds, counted anew each time: two messages of two numbers,
    together about 0.2 ms on one host.
    """

    SECONDS = 2.0

    def __init__(self, world: World, step: int) -> None:
        self.world = world
        self.requests: list[int] = []
        self._step, self._time = step, time.monotonic()
        self._due = step + 1

    @property
    def request(self) -> int:
        """The signal that asked this rank to stop, or 0."""
        return self.requests[0] if self.requests else 0

    def is_due(self, step: int) -> bool:
        """Whether it looks after this step."""
        if self.world.size == 1:
            return self.request > 0 or time.monotonic() >= self._time + self.SECONDS
        return step >= self._due

    def look(self, step: int) -> int:
        """The signal that asked any rank to stop, or 0."""
        now = time.monotonic()
        steps = max(1, int(self.SECONDS * (step - self._step) / max(now - self._time, 1e-6)))
        signal_number, fewest = self.world.max(self.request, -steps)
        self._step, self._time, self._due = step, now, step - int(fewest)
        return int(signal_number)
