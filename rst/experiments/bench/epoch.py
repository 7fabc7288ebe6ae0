"""Whole epochs in the project's settings for a CPU, beside the loop that most people would write."""

import statistics
import time
from collections.abc import Sequence

import torch
from torch.autograd.profiler import profile
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from rst.experiments.bench.peers import PilImages, data_loader, pytorch_optimizer_sam
from rst.experiments.bench.table import Row, Table
from rst.experiments.bench.trainer import Trainer
from rst.experiments.bench.turns import Step, median_ratio, progress, take_turns, wall_clock
from rst.experiments.build import build_model
from rst.experiments.data import Split

SETTINGS = ("scale=cpu", "model=wrn16_1")
SCHEMES = {
    "SAM": ("scheme=sam",),
    # Every second step is sharp, so that all epochs cost the same.
    "G-RST[50%]": ("scheme=grst", "schedule=periodic", "schedule.k=2"),
}
NOTE = (
    "Images a second of whole training epochs of one network on images of 32x32 pixels, with augmentation. Ours "
    "are those of scale=cpu, with its precision, four micro-batches and metrics; the conventional loop is "
    "float32, with a DataLoader of two workers, torchvision's augmentation and pytorch_optimizer's SAM on SGD, "
    "with one perturbation a batch."
)
SIDE = 2048
"""Rows and columns of the matrices whose product tells how fast a processor computes."""


def measure(device: torch.device, rounds: int = 5, images: int = 512, settings: Sequence[str] = SETTINGS) -> Table:
    """A row for each scheme of ours, and one for the conventional SAM."""
    trainers = {name: Trainer(device, *settings, *scheme, images=images) for name, scheme in SCHEMES.items()}
    contenders = {
        "conventional SAM": conventional_epoch(trainers["SAM"], device),
        **{name: trainer.epoch for name, trainer in trainers.items()},
    }
    with progress("epoch", rounds) as bar:
        times = take_turns(contenders, rounds, wall_clock(device), bar)
    [conventional, *_] = contenders
    rows: list[Row] = [
        {
            "loop": name,
            "images_per_second": images / statistics.median(seconds),
            "over_conventional_SAM": median_ratio(times[conventional], seconds),
        }
        for name, seconds in times.items()
    ]
    note = f"{NOTE} {what_takes_the_time(trainers['SAM'].epoch)}" if device.type == "cpu" else NOTE
    return Table("epoch", "Whole epochs", note, rounds, rows)


def what_takes_the_time(epoch: Step) -> str:
    """Two sentences on an epoch on the CPU: which operators take most of its time, and how fast its convolutions are.

    The time of an operator is without that of the operators it calls.
    """
    with profile(use_kineto=False) as profiled:  # Kineto writes to the terminal.
        epoch()
    seconds = {operator.key: operator.self_cpu_time_total / 1e6 for operator in profiled.key_averages()}
    slowest = sorted(seconds, key=lambda name: -seconds[name])[:5]
    shares = (f"{name} {seconds[name] / sum(seconds.values()):.0%}" for name in slowest)
    with FlopCounterMode(display=False) as counted:
        epoch()
    counts = counted.get_flop_counts()["Global"]
    operations = sum(count for operator, count in counts.items() if "convolution" in str(operator))
    rate = operations / sum(time for name, time in seconds.items() if "convolution" in name)
    return (
        f"What bounds an epoch of SAM of ours is, by its share of the time: {', '.join(shares)}. Its convolutions do "
        f"{rate / matrix_product_rate():.0%} of the operations a second of a product of two bfloat16 matrices of "
        f"{SIDE} rows and columns."
    )


def matrix_product_rate() -> float:
    """Floating-point operations a second where nothing but the processor's arithmetic bounds them."""
    a, b = torch.ones(2, SIDE, SIDE, dtype=torch.bfloat16)
    times = take_turns({"product": lambda: a @ b}, 9, time.perf_counter, tqdm(disable=True))
    return 2 * SIDE**3 / statistics.median(times["product"])


def conventional_epoch(trainer: Trainer, device: torch.device) -> Step:
    """An epoch of the same network on the same images, in the loop that a tutorial would show."""
    spec, split = trainer.spec, trainer.run.data.train
    assert isinstance(split, Split)
    pictures = PilImages(split.images, split.labels, spec.dataset.mean, spec.dataset.std)
    loader = data_loader(pictures, spec.recipe.batch_size)
    model = build_model(spec.changed(channels_last=False), device)
    optimizer = pytorch_optimizer_sam()(
        model.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9, weight_decay=5e-4
    )

    def epoch() -> None:
        for images, labels in loader:
            x, y = images.to(device), labels.to(device)
            F.cross_entropy(model(x), y).backward()
            optimizer.first_step(zero_grad=True)
            F.cross_entropy(model(x), y).backward()
            optimizer.second_step(zero_grad=True)

    return epoch
