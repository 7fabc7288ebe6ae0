"""What a sharp step costs, how time follows p, and how fast the loader is; each as a ratio, measured in one run."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

import rst
from rst.data import Loader
from rst.experiments.record import environment, write_atomically
from rst.models import WideResNet

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def main() -> None:
    """Print the ratios and write them as JSON."""
    parser = argparse.ArgumentParser(description="Measure the method and the loader on this machine.")
    parser.add_argument("--rounds", type=int, default=15, help="alternations behind each median (default 15)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("results/bench.json"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    result = {
        **cost_of_steps(device, arguments.rounds),
        **loader_speed(device),
        "environment": environment(device, data_digest="random images"),
    }
    for name, value in result.items():
        if name != "environment":
            print(f"{name:32} {value:,.3f}" if isinstance(value, float) else f"{name:32} {value}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, json.dumps(result, indent=2))
    print(f"Written: {arguments.output}")


def cost_of_steps(device: torch.device, rounds: int) -> dict[str, float]:
    """A sharp step over two clean ones, and (time at p) / (time at 0) / (1 + p): WRN-10-2, 32x32 images, batch 64.

    The contenders take turns, four steps each, and the medians of the ratios of each round are given.
    """
    runs = {p: step_of(schedule, device) for p, schedule in SCHEDULES.items()}
    for step in runs.values():
        timed(step, 4, device)
    times: dict[float, list[float]] = {p: [] for p in runs}
    for _ in tqdm(range(rounds), desc="steps", file=sys.stderr):
        for p, step in runs.items():
            times[p].append(timed(step, 4, device))

    def over_clean(p: float) -> float:
        return statistics.median(a / b for a, b in zip(times[p], times[0.0], strict=True))

    return {
        "clean_step_milliseconds": 250 * statistics.median(times[0.0]),
        "sharp_step_over_two_clean_steps": over_clean(1.0) / 2,
        **{f"time_over_1_plus_p_at_p_{p:g}": over_clean(p) / (1 + p) for p in runs},
    }


SCHEDULES = {0.0: rst.schedules.never(), 0.5: rst.schedules.periodic(2), 1.0: rst.schedules.always()}


def step_of(schedule: rst.schedules.Schedule, device: torch.device) -> Callable[[], None]:
    """One training step after the other, under a schedule."""
    model = WideResNet(depth=10, widen_factor=2, num_classes=10).to(device)
    images, labels = torch.randn(64, 3, 32, 32, device=device), torch.randint(10, (64,), device=device)
    method = rst.RST(model, rho=0.1, schedule=schedule, total_steps=1_000_000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    def step() -> None:
        method.backward(lambda: F.cross_entropy(model(images), labels))
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Callable[[], None], times: int, device: torch.device) -> float:
    """Seconds for some steps."""
    begin = time.perf_counter()
    for _ in range(times):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


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
    """Images a second, augmented and on the device: ours, and a torchvision DataLoader with two workers."""
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
    return timed_speed(lambda: consume(loader, device), len(loader), device)


def rst_speed(images: torch.Tensor, device: torch.device) -> float:
    """Over five epochs."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    loader = Loader(images, labels, batch_size=256, mean=MEAN, std=STD, flip=True, crop_padding=4, device=device)
    consume(loader.epoch(0), device)

    def epochs() -> None:
        for epoch in range(1, 6):
            consume(loader.epoch(epoch), device)

    return timed_speed(epochs, 5 * len(loader), device)


def timed_speed(work: Callable[[], None], batches: int, device: torch.device) -> float:
    """Images a second."""
    return 256 * batches / timed(work, 1, device)


def consume(batches: Iterable[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> None:
    """Take every batch to the device."""
    for images, _ in batches:
        images.to(device)


if __name__ == "__main__":
    main()
