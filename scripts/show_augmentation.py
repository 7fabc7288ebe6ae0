"""Write training images as the network sees them into a picture: python scripts/show_augmentation.py dataset=digits"""

import argparse
import sys
from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image

from rst.experiments.compose import compose
from rst.experiments.data import RunData, readable
from rst.experiments.devices import torch_device
from rst.experiments.errors import InputError

MOST_IMAGES = 64


def main() -> int:
    """Write one picture. The exit status is 0 if it was written, and 1 if the input was wrong."""
    parser = argparse.ArgumentParser(description="Write a grid of augmented training images as a picture.")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for train.py")
    parser.add_argument("--epoch", type=int, default=0, help="the epoch whose first batch is shown (default 0)")
    parser.add_argument(
        "--output", type=Path, default=Path("augmentation.png"), help="the picture (default augmentation.png)"
    )
    arguments = parser.parse_intermixed_args()
    if arguments.epoch < 0:
        parser.error(f"--epoch {arguments.epoch}: write an integer from 0.")
    try:
        spec = compose(arguments.overrides)
        loader = RunData(spec, torch_device(spec.device)).loader()
        images, _ = next(readable(loader.epoch(arguments.epoch)))
    except InputError as error:
        print(f"show_augmentation.py: {error}", file=sys.stderr)
        return 1
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.dataset.mean, spec.dataset.std))
    pixels = (images[:MOST_IMAGES].cpu() * std + mean).clamp(0, 1)
    try:
        save_image(make_grid(pixels, nrow=8, padding=1, pad_value=1.0), arguments.output)
    except (OSError, ValueError) as error:
        print(f"show_augmentation.py: --output {arguments.output} cannot be written ({error}).", file=sys.stderr)
        return 1
    print(f"Written: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
