"""What a checkpoint keeps: all that a run needs in order to go on as if it had never stopped."""

import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_map_only

import rst
from rst.experiments.runs.record import Record
from rst.experiments.spec import RunSpec
from rst.experiments.training import checkpoint
from rst.experiments.training.comparison import compare, digest
from rst.experiments.training.metrics import EpochSums
from rst.experiments.training.ranks import World, averaged_buffers


@dataclass
class Counters:
    """How far a run is, and what it has cost; equal on all ranks."""

    step: int = 0
    train_seconds: float = 0.0
    """Of training alone: start-up, evaluation and checkpoints are not in it."""
    checkpoint_seconds: float = 0.0
    """Of writing checkpoints, but for the last one before each stop."""
    scores: dict[str, float] = field(default_factory=dict)
    """Of the latest evaluation."""
    best_test_error: float = math.inf
    """The lowest of all evaluations, of which there are ``evaluations``."""
    evaluations: int = 0


@dataclass
class TrainingState:
    """The parts of a run that training changes."""

    model: nn.Module
    optimizer: Optimizer
    lr_scheduler: LambdaLR
    scaler: GradScaler
    method: rst.RST
    sums: EpochSums
    counters: Counters = field(default_factory=Counters)

    def save(self, record: Record, spec: RunSpec, world: World) -> None:
        """Write a checkpoint: what is equal on all ranks, with the buffers of an evaluation, and each rank's own part.

        Raises:
            InputError: the ranks have different weights, or the file cannot be written.
        """
        begin = time.monotonic()
        compare(world, lambda: {"the weights": digest(self.model.parameters())}, f" after step {self.counters.step}")
        own = {name: getattr(self, name).state_dict() for name in _EACH_RANKS_OWN}
        own["buffers"] = dict(self.model.named_buffers())
        ranks = world.gather_on_first(tree_map_only(Tensor, Tensor.cpu, own))
        with averaged_buffers(self.model, world):
            content = {
                "id": record.id,
                "config": yaml.safe_dump(spec.dump(), sort_keys=False),
                "ranks": ranks,
                "counters": dataclasses.asdict(self.counters),
                **{name: getattr(self, name).state_dict() for name in _SHARED},
            }
            world.first(lambda: checkpoint.save(record.checkpoint, content))
        self.counters.checkpoint_seconds += time.monotonic() - begin

    def resume(self, record: Record, world: World) -> None:
        """Go on from the newest checkpoint, if there is one. The first rank reads it, and each gets its own part.

        Raises:
            InputError: the checkpoint is damaged, or belongs to another run or to another number of devices.
        """
        ranks: list[dict[str, Any]] = []

        def read() -> dict[str, Any] | None:
            content = checkpoint.of_run(record, world.size)
            if content is not None:
                ranks.extend(content.pop("ranks"))
            return content

        content = world.first(read)
        if content is None:
            return
        own = world.scatter(ranks)
        with checkpoint.fitting(record.checkpoint):
            counters = Counters(**content["counters"])  # Refuses unknown names; the next line refuses wrong types.
            self.counters = TypeAdapter(Counters).validate_python(dataclasses.asdict(counters))
            for name in _SHARED:
                getattr(self, name).load_state_dict(content[name])
            for name in _EACH_RANKS_OWN:
                getattr(self, name).load_state_dict(own[name])
            with torch.no_grad():
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(own["buffers"][name])


_SHARED = ("model", "optimizer", "lr_scheduler", "scaler")
_EACH_RANKS_OWN = ("method", "sums")
