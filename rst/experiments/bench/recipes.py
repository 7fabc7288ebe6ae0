"""The paper's CIFAR networks at their recipes' batch on a GPU: images a second, and the minutes that follow."""

import csv
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from rst.experiments.bench.table import Row, Table
from rst.experiments.bench.trainer import Trainer
from rst.experiments.bench.turns import median_ratio, progress, take_turns, wall_clock
from rst.experiments.compose import PROJECT, compose
from rst.experiments.tables.estimate import NETWORKS as PAPER_NAMES

NETWORKS = ("resnet18", "wrn28_10", "vgg16_bn", "vit_ti", "vit_s", "vit_b", "pyramidnet164")
FORMS = {
    "fp32": (),
    "TF32": ("tf32=true", "channels_last=true"),
    "bf16": ("autocast=bfloat16", "channels_last=true"),
    "bf16, kernel by kernel": ("autocast=bfloat16", "channels_last=true", "cuda_graphs=false"),
}
"""The keys of a run that change its speed and its rounding."""
STEPS = 3
"""Steps of a contender in one turn."""
SECONDS = 240.0
"""When so many have passed, a network is measured in its first form alone, and what is left out says so."""
NOTE = (
    "Images a second in training steps of the harness, with the batch and the micro-batches of the paper's "
    "recipe, the base optimizer alone (SGD; AdamW for ViTs) and SAM. SAM's time is over that of the base "
    "optimizer in the same form, and each form's speed over that of fp32. CNNs in TF32 and bf16 are in "
    "channels_last. The passes of a step are replayed as one CUDA graph, but for the form that starts kernel by kernel "
    "and for VGG16-BN and ViTs, whose dropout is not captured. Minutes are those of the whole recipe on this one "
    "GPU, without evaluation; the paper prints the others, for four A100."
)


def measure(
    device: torch.device,
    rounds: int = 3,
    networks: Sequence[str] = NETWORKS,
    forms: Mapping[str, Sequence[str]] = FORMS,
    settings: Sequence[str] = (),
    written: Callable[[Table], object] = lambda table: None,
) -> Table:
    """A row for each network in each form. ``written`` gets the table so far after every network."""
    rows: list[Row] = []
    late: list[str] = []
    end = time.monotonic() + SECONDS
    with progress("recipes", rounds * len(networks)) as bar:
        for network in networks:
            trainers: dict[str, dict[str, Trainer]] = {}
            for form, keys in forms.items():
                if network.startswith("vit"):  # It has one convolution, and dropout, which is not captured.
                    if "cuda_graphs=false" in keys:
                        continue
                    keys = [key for key in keys if key != "channels_last=true"]
                if trainers and time.monotonic() > end:
                    late.append(f"{network} in {form}")
                    continue
                own = (f"model={network}", *settings, *keys)
                trainers[form] = {scheme: Trainer(device, *own, f"scheme={scheme}") for scheme in ("sgd", "sam")}
            contenders = {f"{scheme} {form}": pair[scheme] for form, pair in trainers.items() for scheme in pair}
            times = take_turns(contenders, rounds, wall_clock(device), bar, STEPS)
            rows += rows_of(network, list(trainers), times, settings)
            trainers.clear()
            contenders.clear()
            note = NOTE + f" Left out, since it would take too long: {', '.join(late)}." * bool(late)
            table = Table("recipes", "The recipes of the paper on this device", note, rounds, list(rows))
            written(table)
    return table


def rows_of(network: str, forms: Sequence[str], times: Mapping[str, list[float]], settings: Sequence[str]) -> list[Row]:
    """The figures of one network; the first form is the reference of the others."""
    recipe = compose([f"model={network}", *settings])
    images, paper = recipe.recipe.epochs * recipe.dataset.train_images, paper_minutes(network)
    rows = []
    for form in forms:
        row: Row = {"network": network, "form": form}
        for scheme in ("sgd", "sam"):
            seconds = times[f"{scheme} {form}"]
            speed = recipe.recipe.batch_size / statistics.median(seconds)
            row |= {
                f"{scheme}_images_per_second": speed,
                f"{scheme}_over_{forms[0]}": median_ratio(times[f"{scheme} {forms[0]}"], seconds),
                f"{scheme}_minutes": images / speed / 60,
                f"{scheme}_minutes_on_four_A100": paper.get(scheme),
            }
        rows.append(row | {"sam_time_over_sgd": median_ratio(times[f"sam {form}"], times[f"sgd {form}"])})
    return rows


def paper_minutes(network: str) -> dict[str, float]:
    """The minutes of training on four A100 that the paper's Table 3 prints, of the base optimizer and of SAM."""
    minutes: dict[str, float] = {}
    with (PROJECT / "results" / "paper" / "table03.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if line["model"] == PAPER_NAMES.get(network):
                if line["metric"] == "time_min":
                    minutes.setdefault("sgd", float(line["mean"]))
                elif line["metric"] == "extra_time_min" and line["scheme"] == "SAM":
                    minutes.setdefault("sam", minutes["sgd"] + float(line["mean"]))
    return minutes
