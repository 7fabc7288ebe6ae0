"""What a sharp step costs, how time follows p, what the variants cost, how fast the loader is: ratios, in one run."""

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
from rst.data import Loader
from rst.experiments.record import environment, write_atomically
from rst.models import WideResNet

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
VARIANTS = {
    **{name: name for name in ("sam", "asam", "gsam", "looksam", "esam")},
    "ssam_f": rst.variants.SSAMF(update_every=100_000),
    "ssam_d": rst.variants.SSAMD(update_every=100_000),
}
STEPS = 5
"""Steps that a contender makes before it is the next one's turn."""


def main() -> None:
    """Print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(description="Measure the method and the loader on this machine.")
    parser.add_argument("--rounds", type=int, default=15, help="alternations behind each median (default 15)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("results/bench.json"))
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
    record = {**figures, "environment": environment(device, data_digest="random images")}
    write_atomically(arguments.output, json.dumps(record, indent=2))
    print(f"Written: {arguments.output}")


# The method -----------------------------------------------------------------------------------------------------------


class Contender:
    """WRN-10-2 on random 32x32 images, batch 64, one training step a call."""

    def __init__(
        self, device: torch.device, schedule: rst.schedules.Schedule, variant: str | rst.variants.Variant = "sam"
    ) -> None:
        self.model = WideResNet(depth=10, widen_factor=2, num_classes=10).to(device)
        self.images, self.labels = torch.randn(64, 3, 32, 32, device=device), torch.randint(10, (64,), device=device)
        self.method = rst.RST(self.model, rho=0.1, schedule=schedule, variant=variant, total_steps=100_000)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    def losses(self, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """Of some of the images."""
        return F.cross_entropy(self.model(self.images[rows]), self.labels[rows], reduction="none")

    def __call__(self) -> None:
        self.method.backward(self.losses)
        self.optimizer.step()
        self.optimizer.zero_grad()


def cost_of_steps(device: torch.device, rounds: int) -> dict[str, float]:
    """A sharp step over two clean ones, and (time at p) / (time at 0) / (1 + p)."""
    schedules = {0.0: rst.schedules.never(), 0.5: rst.schedules.periodic(2), 1.0: rst.schedules.always()}
    times = take_turns({p: Contender(device, schedule) for p, schedule in schedules.items()}, rounds, device)
    over_clean = {p: median_ratio(times[p], times[0.0]) for p in schedules}
    return {
        "clean_step_milliseconds": 1000 * statistics.median(times[0.0]) / STEPS,
        "sharp_step_over_two_clean_steps": over_clean[1.0] / 2,
        **{f"time_over_1_plus_p_at_p_{p:g}": ratio / (1 + p) for p, ratio in over_clean.items()},
    }


def cost_of_variants(device: torch.device, rounds: int) -> dict[str, float]:
    """Sharp steps of each variant: time and peak memory over SGD's, and passes a step.

    SSAM's masks last for longer than is measured here.
    """
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
    """Seconds for `STEPS` steps of each, round after round, so that a drift of the machine meets all alike."""
    for step in contenders.values():
        timed(step, STEPS, device)
    times: dict[object, list[float]] = {name: [] for name in contenders}
    for _ in tqdm(range(rounds), desc="rounds", file=sys.stderr):
        for name, step in contenders.items():
            times[name].append(timed(step, STEPS, device))
    return times


def median_ratio(times: list[float], reference: list[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def timed(step: Callable[[], None], times: int, device: torch.device) -> float:
    """Seconds for some steps."""
    begin = time.perf_counter()
    for _ in range(times):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations inside make and that still live, and their peak."""

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
    """Bytes that a step makes and holds at its peak."""
    with LiveBytes() as live:
        step()
    return live.peak


# The loader -----------------------------------------------------------------------------------------------------------


class PilImages(Dataset):
    """Images as torchvision's data sets hold them, with the augmentation of the paper."""

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
    """Images a second, augmented and on the device: ours, and a torchvision DataLoader with two workers.

    Ours with one thread: a gather gains little from more, and where cores are shared loses by waiting for them.
    """
    print("loader: torchvision's DataLoader, then ours", file=sys.stderr)
    images = torch.randint(256, (10_000, 3, 32, 32), dtype=torch.uint8)
    torchvision, ours = torchvision_speed(images, device), rst_speed(images, device)
    return {
        "loader_images_per_second": ours,
        "torchvision_images_per_second": torchvision,
        "loader_over_torchvision": ours / torchvision,
    }


def torchvision_speed(images: torch.Tensor, device: torch.device) -> float:
    """Over the second epoch of its workers, which end with this function."""
    loader = DataLoader(PilImages(images), 256, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)
    consume(loader, device)
    return 256 * len(loader) / timed(lambda: consume(loader, device), 1, device)


def rst_speed(images: torch.Tensor, device: torch.device) -> float:
    """Over five epochs."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    loader = Loader(images, labels, batch_size=256, mean=MEAN, std=STD, flip=True, crop_padding=4, device=device)
    consume(loader.epoch(0), device)
    epochs = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in range(1, 6))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = timed(lambda: consume(epochs, device), 1, device)
    torch.set_num_threads(threads)
    return 256 * 5 * len(loader) / seconds


def consume(batches: Iterable[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> None:
    """Take every batch to the device."""
    for images, _ in batches:
        images.to(device)


if __name__ == "__main__":
    main()
