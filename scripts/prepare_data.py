"""Find, check and cache a data set ahead of time: python scripts/prepare_data.py cifar10 [--root FOLDER]"""

import argparse
import sys

from rst.data import ImageFolders
from rst.experiments.config import InputError, bad_input, load_config, torch_device
from rst.training.data import RunData


def main() -> int:
    """Exit status: 0 where the data set is ready."""
    parser = argparse.ArgumentParser(description="Find, check and cache a data set, so that training starts at once.")
    parser.add_argument("dataset", help="cifar10, cifar100, ...: a file of configs/dataset")
    parser.add_argument("--root", help="the folder with its files, or any parent; else $RST_DATA, or data")
    arguments = parser.parse_args()
    overrides = [f"dataset={arguments.dataset}", "device=cpu"]
    try:
        cfg = load_config(overrides + ([f"dataset.root={arguments.root}"] if arguments.root else []))
        data = RunData(cfg, torch_device(cfg))
        with bad_input():
            if isinstance(data.source, ImageFolders):
                data.source.check()
    except InputError as error:
        print(f"prepare_data.py: {error}", file=sys.stderr)
        return 1
    sizes = f"{len(data.train.labels):,} training and {len(data.splits['test'].labels):,} test images"
    where = data.source.root if isinstance(data.source, ImageFolders) else cfg.paths.cache
    print(f"{arguments.dataset}: {sizes}, digest {data.source.digest[:12]}. They are in {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
