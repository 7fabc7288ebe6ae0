"""Measure the method and the loader on this machine: python scripts/bench.py

It measures the cost of a sharp step, the time of training against p, the time and memory of every variant, and the
speed of the loader beside torchvision's. Figures that are compared are measured in turns, and are given as ratios.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

import rst
from rst.experiments.data import Loader
from rst.experiments.files import write_atomically
from rst.experiments.models import WideResNet
from rst.experiments.runs.environment import environment

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
VARIANTS = {
    **{name: name for name in ("sam", "asam", "friendly", "gsam", "looksam", "esam")},
    # One mask for the whole measurement: what an update of the mask costs is not measured here.
    "ssam_f": rst.variants.SSAMF(update_every=100_000),
    "ssam_d": rst.variants.SSAMD(update_every=100_000),
}
STEPS = 5
"""How many steps a contender makes in one turn."""
BATCH = 256
"""Images in a batch of the loaders."""
EPOCHS = 5
"""How many epochs of our loader are timed."""


def main() -> None:
    """Print the figures, and write them with the environment as JSON."""
    parser = argparse.ArgumentParser(description="Measure the method and the loader on this machine.")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender, for a median (default 15)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="such as cpu or cuda")
    parser.add_argument("--output", type=Path, default=Path("results/bench.json"), help="default results/bench.json")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    figures = {
        **cost_of_steps(device, arguments.rounds),
        **cost_of_variants(device, arguments.rounds),
        **loader_speed(device),
    }
    for name, value in figures.items():
        print(f"{name:36} {value:12,.3f}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    record = {**figures, "environment": environment(device)}
    write_atomically(arguments.output, json.dumps(record, indent=2))
    print(f"Written: {arguments.output}")


# The method -----------------------------------------------------------------------------------------------------------


class Contender:
    """A WRN-10-2 in training on one batch of 64 random images of 32x32 pixels. A call makes one step."""

    def __init__(
        self, device: torch.device, schedule: rst.schedules.Schedule, variant: str | rst.variants.Variant = "sam"
    ) -> None:
        self.model = WideResNet(depth=10, widen_factor=2, num_classes=10).to(device)
        self.images, self.labels = torch.randn(64, 3, 32, 32, device=device), torch.randint(10, (64,), device=device)
        self.method = rst.RST(self.model, rho=0.1, schedule=schedule, variant=variant, total_steps=100_000)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    def losses(self, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """The losses of some of the images, float32 [N]."""
        return F.cross_entropy(self.model(self.images[rows]), self.labels[rows], reduction="none")

    def __call__(self) -> None:
        self.method.backward(self.losses)
        self.optimizer.step()
        self.optimizer.zero_grad()


def cost_of_steps(device: torch.device, rounds: int) -> dict[str, float]:
    """The time of a sharp step over that of two clean steps, and the time at p over (1 + p) times the time at p = 0."""
    schedules = {0.0: rst.schedules.never(), 0.5: rst.schedules.periodic(2), 1.0: rst.schedules.always()}
    times = take_turns({p: Contender(device, schedule) for p, schedule in schedules.items()}, rounds, device)
    over_clean = {p: median_ratio(times[p], times[0.0]) for p in schedules}
    return {
        "clean_step_milliseconds": 1000 * statistics.median(times[0.0]) / STEPS,
        "sharp_step_over_two_clean_steps": over_clean[1.0] / 2,
        **{f"time_over_1_plus_p_at_p_{p:g}": ratio / (1 + p) for p, ratio in over_clean.items()},
    }


def cost_of_variants(device: torch.device, rounds: int) -> dict[str, float]:
    """Time and peak memory of a sharp step of each variant over those of a step of SGD, and its passes a step."""
    sgd = Contender(device, rst.schedules.never())
    variants = {name: Contender(device, rst.schedules.always(), variant) for name, variant in VARIANTS.items()}
    times = take_turns({"sgd": sgd, **variants}, rounds, device)
    memory = peak_memory(sgd)
    figures = {}
    for name, contender in variants.items():
        figures[f"{name}_time_over_sgd"] = median_ratio(times[name], times["sgd"])
        figures[f"{name}_memory_over_sgd"] = max(peak_memory(contender) for _ in range(STEPS + 1)) / memory
        figures[f"{name}_passes"] = 1 + contender.method.expected_extra_propagations
    return figures


def take_turns(
    contenders: Mapping[object, Callable[[], None]], rounds: int, device: torch.device
) -> dict[object, list[float]]:
    """The seconds that each contender took for `STEPS` steps, in every round.

    The contenders take turns within a round, so that a machine that slows down slows all of them alike.
    """
    for step in contenders.values():
        timed(step, STEPS, device)
    times: dict[object, list[float]] = {name: [] for name in contenders}
    for _ in tqdm(range(rounds), desc="rounds", file=sys.stderr):
        for name, step in contenders.items():
            times[name].append(timed(step, STEPS, device))
    return times


def median_ratio(times: list[float], reference: list[float]) -> float:
    """The median over the rounds of the ratio of the two times of a round."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def timed(step: Callable[[], None], times: int, device: torch.device) -> float:
    """How many seconds so many calls of ``step`` take."""
    begin = time.perf_counter()
    for _ in range(times):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


class LiveBytes(TorchDispatchMode):
    """Inside, the bytes of all tensors that operations made and that still exist (`now`), and their `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_memory(step: Callable[[], None]) -> int:
    """The most bytes that tensors made in a step occupy at once."""
    with LiveBytes() as live:
        step()
    return live.peak


# The loader -----------------------------------------------------------------------------------------------------------


class PilImages(Dataset):
    """PIL images, which torchvision's data sets hold too, with the augmentation of the paper."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = [to_pil_image(image) for image in images]
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), 0


def loader_speed(device: torch.device) -> dict[str, float]:
    """How many augmented images a second reach the device: of our loader, and of a DataLoader with two workers.

    Our loader runs on one thread, since a gather gains little from more, and waits for them where cores are shared.
    """
    print("Measuring the loaders: first torchvision's, then ours.", file=sys.stderr)
    images = torch.randint(256, (10_000, 3, 32, 32), dtype=torch.uint8)
    torchvision, ours = torchvision_speed(images, device), rst_speed(images, device)
    return {
        "loader_images_per_second": ours,
        "torchvision_images_per_second": torchvision,
        "loader_over_torchvision": ours / torchvision,
    }


def torchvision_speed(images: torch.Tensor, device: torch.device) -> float:
    """Images a second in the second epoch, for which the workers have started already."""
    loader = DataLoader(PilImages(images), BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)
    consume(loader, device)
    return BATCH * len(loader) / timed(lambda: consume(loader, device), 1, device)


def rst_speed(images: torch.Tensor, device: torch.device) -> float:
    """Images a second over `EPOCHS` epochs, after a first one that is not timed."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    loader = Loader(images, labels, batch_size=BATCH, mean=MEAN, std=STD, flip=True, crop_padding=4, device=device)
    consume(loader.epoch(0), device)
    epochs = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in range(1, 1 + EPOCHS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = timed(lambda: consume(epochs, device), 1, device)
    torch.set_num_threads(threads)
    return BATCH * EPOCHS * len(loader) / seconds


def consume(batches: Iterable[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> None:
    """Put every batch on the device."""
    for images, _ in batches:
        images.to(device)


if __name__ == "__main__":
    main()
