"""The data of a run: what its config asks for, on its device."""

from collections.abc import Iterator

import torch
from omegaconf import DictConfig
from torch import Tensor

from rst.data import Augmentation, Loader, Split, evaluation_batches, hold_out, load, with_label_noise
from rst.experiments.config import InputError, bad_input

EVALUATION_BATCH = 500


class RunData:
    """The splits of a run: train, test and, where images are held out, validation."""

    def __init__(self, cfg: DictConfig, device: torch.device) -> None:
        self.cfg, self.device = cfg, device
        data = cfg.dataset
        with bad_input():
            dataset = load(
                data.name,
                root=data.root,
                source=data.source,
                cache=cfg.paths.cache,
                image_size=data.image_size,
                channels=data.channels,
            )
        self.digest = dataset.digest
        train, test = _first(dataset.train, "train_images", data), _first(dataset.test, "test_images", data)
        self.splits = {"test": test}
        if data.validation:
            train, self.splits["validation"] = hold_out(train, data.validation, seed=0)
        self.train = Split(train.images, with_label_noise(train.labels, data.label_noise, data.num_classes, cfg.seed))

    def loader(self) -> Loader:
        """Augmented training batches."""
        data, augmentation = self.cfg.dataset, Augmentation(**self.cfg.augmentation)
        with bad_input():
            return Loader(
                self.train.images,
                self.train.labels,
                batch_size=self.cfg.recipe.batch_size,
                mean=data.mean,
                std=data.std,
                flip=augmentation.flip,
                crop_padding=augmentation.crop_padding,
                transforms=augmentation.transforms(data.image_size, data.num_classes),
                seed=self.cfg.seed,
                device=self.device,
            )

    def batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of the test or validation split, in order."""
        data = self.cfg.dataset
        return evaluation_batches(self.splits[split], EVALUATION_BATCH, data.mean, data.std, self.device)


def _first(split: Split, key: str, data: DictConfig) -> Split:
    if data[key] > len(split):
        raise InputError(f"dataset.{key}={data[key]}, but {data.name} has {len(split)} there: take at most as many.")
    return split[: data[key]]
