"""Show training images as the network sees them: python scripts/show_augmentation.py augmentation=cutout"""

import argparse
import sys
from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image

from rst.experiments.config import InputError, load_config, torch_device
from rst.training.data import RunData


def main() -> int:
    """Exit status: 0 where the picture was written."""
    parser = argparse.ArgumentParser(description="Write a grid of augmented training images as a picture.")
    parser.add_argument("overrides", nargs="*", help="key=value, as for train.py")
    parser.add_argument("--epoch", type=int, default=0, help="whose first batch is shown (default 0)")
    parser.add_argument("--output", type=Path, default=Path("augmentation.png"))
    arguments = parser.parse_intermixed_args()
    if arguments.epoch < 0:
        parser.error(f"--epoch {arguments.epoch}: write a number from 0.")
    try:
        cfg = load_config(arguments.overrides)
        loader = RunData(cfg, torch_device(cfg)).loader()
        images, _ = next(loader.epoch(arguments.epoch))
    except InputError as error:
        print(f"show_augmentation.py: {error}", file=sys.stderr)
        return 1
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.dataset.mean, cfg.dataset.std))
    pixels = (images[:64].cpu() * std + mean).clamp(0, 1)
    try:
        save_image(make_grid(pixels, nrow=8, padding=1, pad_value=1.0), arguments.output)
    except (OSError, ValueError) as error:
        print(f"show_augmentation.py: --output {arguments.output} cannot be written ({error}).", file=sys.stderr)
        return 1
    print(f"Written: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
