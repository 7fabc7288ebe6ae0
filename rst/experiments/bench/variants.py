"""Time, memory and passes of every variant of SAM."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

import rst
from rst.experiments.bench.table import Table
from rst.experiments.bench.turns import NewMemory, median_ratio, progress, take_turns, wall_clock
from rst.experiments.models import WideResNet
from rst.variants import Variant

VARIANTS: Mapping[str, str | Variant] = {
    **{name: name for name in ("sam", "asam", "friendly", "gsam", "looksam", "esam")},
    # One mask for the whole measurement: what an update of the mask costs is not measured here.
    "ssam_f": rst.variants.SSAMF(update_every=100_000),
    "ssam_d": rst.variants.SSAMD(update_every=100_000),
}
STEPS = 5
"""How many steps a contender makes in one turn: LookSAM's cycle."""
NOTE = (
    "A sharp step of each variant: its wall time over that of a step of SGD, what it keeps from one step to the next "
    "beyond what SGD keeps, in vectors as long as the parameters, and its passes, each of one forward and one backward "
    "propagation. The network is a WRN-10-2, with a batch of 64 images of 32x32 pixels."
)


def measure(
    device: torch.device, rounds: int = 7, variants: Mapping[str, str | Variant] = VARIANTS, batch: int = 64
) -> Table:
    """A row for each variant."""
    sgd = SharpStep(device, rst.schedules.never(), "sam", batch)
    contenders = {name: SharpStep(device, rst.schedules.always(), v, batch) for name, v in variants.items()}
    without, kept = kept_vectors(sgd), {name: kept_vectors(step) for name, step in contenders.items()}
    with progress("variants", rounds) as bar:
        times = take_turns({"sgd": sgd, **contenders}, rounds, wall_clock(device), bar, STEPS)
    rows = [
        {
            "variant": name,
            "time_over_sgd": median_ratio(times[name], times["sgd"]),
            "vectors_kept": kept[name] - without,
            "passes": 1 + step.method.expected_extra_propagations,
        }
        for name, step in contenders.items()
    ]
    return Table("variants", "What the variants cost", NOTE, rounds, rows)


class SharpStep:
    """A WRN-10-2 in training on one batch of random images. A call makes one step."""

    def __init__(
        self, device: torch.device, schedule: rst.schedules.Schedule, variant: str | Variant, batch: int
    ) -> None:
        self.model = WideResNet(depth=10, widen_factor=2, num_classes=10).to(device)
        self.images = torch.randn(batch, 3, 32, 32, device=device)
        self.labels = torch.randint(10, (batch,), device=device)
        self.method = rst.RST(self.model, rho=0.1, schedule=schedule, variant=variant, total_steps=100_000)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    def losses(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """The losses of some of the images, float32 [N]."""
        return F.cross_entropy(self.model(self.images[rows]), self.labels[rows], reduction="none")

    def __call__(self) -> None:
        self.method.backward(self.losses)
        self.optimizer.step()
        self.optimizer.zero_grad()


def kept_vectors(step: SharpStep) -> float:
    """What the first steps make and keep, in units of the parameters; the optimizer's momentum is part of it."""
    with NewMemory() as new:
        for _ in range(STEPS):
            step()
    return new.now / sum(p.nbytes for p in step.model.parameters())
