"""Find, check and cache a data set ahead of training: python scripts/prepare_data.py cifar10 [--root FOLDER]"""

import argparse
import sys

from rst.experiments.compose import compose
from rst.experiments.data import ImageFolders, RunData
from rst.experiments.devices import torch_device
from rst.experiments.errors import InputError, bad_input


def main() -> int:
    """Prepare one data set. The exit status is 0 if it is ready, and 1 if it is missing or damaged."""
    parser = argparse.ArgumentParser(description="Find, check and cache a data set, so that training starts at once.")
    parser.add_argument("dataset", help="a file of configs/dataset, such as cifar10 or cifar100")
    parser.add_argument("--root", help="the folder with its files, or any parent of it (default $RST_DATA, or data)")
    arguments = parser.parse_args()
    overrides = [f"dataset={arguments.dataset}", "device=cpu"]
    try:
        spec = compose(overrides + ([f"dataset.root={arguments.root}"] if arguments.root else []))
        data = RunData(spec, torch_device(spec.device))
        with bad_input():
            if isinstance(data.source, ImageFolders):
                data.source.check()
    except InputError as error:
        print(f"prepare_data.py: {error}", file=sys.stderr)
        return 1
    sizes = f"{len(data.train):,} training and {len(data.splits['test']):,} test images"
    print(f"{arguments.dataset}: {sizes}, digest {data.source.digest[:12]}. They {_place(data)}")
    return 0


def _place(data: RunData) -> str:
    if data.spec.dataset.name == "digits":
        return "come with scikit-learn."
    return f"are in {data.source.root if isinstance(data.source, ImageFolders) else data.spec.paths.cache}"


if __name__ == "__main__":
    sys.exit(main())
