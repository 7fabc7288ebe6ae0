"""The time of training against p: 1 + p passes a step are what the method promises."""

import statistics
from collections.abc import Sequence
from functools import partial

import torch

from rst.experiments.bench.table import Row, Table
from rst.experiments.bench.trainer import Trainer
from rst.experiments.bench.turns import median_ratio, progress, take_turns, wall_clock

NETWORKS = ("wrn16_1", "resnet18")
SETTINGS = ("scale=cpu",)
"""The recipe's batch of four micro-batches, with the slim networks of a laptop."""

PERIODS = {0.1: 10, 0.5: 2, 1.0: 1}
"""p, and after how many steps a sharp one comes: a turn of so many steps has exactly its share of sharp steps."""
PLAIN_STEPS = 4
NOTE = (
    "Wall time of a step of the harness at p over that at p = 0 and over 1 + p, the passes of a step: 1 where the "
    "method costs nothing but its passes. Batches, micro-batches and slim networks are those of scale=cpu, the "
    "images have 32x32 pixels, and every k-th step is sharp."
)


def measure(
    device: torch.device,
    rounds: int = 25,
    networks: Sequence[str] = NETWORKS,
    settings: Sequence[str] = SETTINGS,
) -> Table:
    """A row for each network and p."""
    rows: list[Row] = []
    with progress("steps", rounds * len(networks)) as bar:
        for network in networks:
            own = [f"model={network}", *settings]
            plain = Trainer(device, "scheme=sgd", *own)
            sharp = {
                p: Trainer(device, "scheme=rst", "schedule=periodic", f"schedule.k={k}", *own)
                for p, k in PERIODS.items()
            }
            contenders = {
                "0": partial(plain.steps, PLAIN_STEPS),
                **{f"{p:g}": partial(trainer.steps, PERIODS[p]) for p, trainer in sharp.items()},
            }
            times = take_turns(contenders, rounds, wall_clock(device), bar)
            plain_step = [seconds / PLAIN_STEPS for seconds in times["0"]]
            for p, k in PERIODS.items():
                ratio = median_ratio(times[f"{p:g}"], plain_step) / k
                rows.append(
                    {
                        "network": network,
                        "p": p,
                        "time_over_plain": ratio,
                        "time_over_plain_and_1_plus_p": ratio / (1 + p),
                        "milliseconds_of_a_plain_step": 1000 * statistics.median(plain_step),
                    }
                )
    return Table("steps", "The time of a step against p", NOTE, rounds, rows)
