"""The data of a run: what its config asks for, on its device."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from omegaconf import DictConfig
from torch import Tensor

from rst.data import (
    Augmentation,
    Dataset,
    FileLoader,
    Files,
    ImageFolders,
    Loader,
    centre_crop_batches,
    evaluation_batches,
    hold_out,
    load,
    open_imagenet,
    with_label_noise,
)
from rst.data.imagenet import available_cores
from rst.experiments.config import InputError, bad_input
from rst.training.distributed import ALONE, World

EVALUATION_BATCH = 500


class RunData:
    """The splits of a run: train, test and, where images are held out, validation.

    Small data sets are in memory, ImageNet is in files; the batches of either look the same.
    """

    def __init__(self, cfg: DictConfig, device: torch.device, world: World = ALONE) -> None:
        self.cfg, self.device, self.world = cfg, device, world
        self.workers = max(1, available_cores() // world.local_size)
        data = cfg.dataset
        self.source = _open(cfg)
        train, test = self.source.train, self.source.test
        for key, split in (("train_images", train), ("test_images", test)):
            if data[key] > len(split):
                raise InputError(f"dataset.{key}={data[key]}, but there are {len(split)}: take at most as many.")
        classes = int(max(train.labels.max(), test.labels.max())) + 1
        if classes > data.num_classes:
            raise InputError(f"dataset.num_classes={data.num_classes}, but the labels are of {classes} classes.")
        train, self.splits = train[: data.train_images], {"test": test[: data.test_images]}
        if data.validation:
            train, self.splits["validation"] = hold_out(train, data.validation, seed=0)
        labels = with_label_noise(train.labels, data.label_noise, data.num_classes, cfg.seed)
        self.train = replace(train, labels=labels)

    def loader(self) -> Loader | FileLoader:
        """Augmented training batches: of each, this rank's share."""
        data, train = self.cfg.dataset, self.train
        with bad_input():
            augmentation = Augmentation(**self.cfg.augmentation)
            settings = {
                "batch_size": self.cfg.recipe.batch_size,
                "mean": data.mean,
                "std": data.std,
                "flip": augmentation.flip,
                "transforms": augmentation.transforms(data.image_size, data.num_classes),
                "seed": self.cfg.seed,
                "device": self.device,
                "rank": self.world.rank,
                "world_size": self.world.size,
            }
            if isinstance(train, Files):
                return FileLoader(train, image_size=data.image_size, workers=self.workers, **settings)
            return Loader(train.images, train.labels, crop_padding=augmentation.crop_padding, **settings)

    def batches(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of the test or validation split, in order; of several ranks, each has its share."""
        data, split = self.cfg.dataset, self.splits[name][self.world.rank :: self.world.size]
        settings = (EVALUATION_BATCH, data.mean, data.std, self.device)
        if isinstance(split, Files):
            return centre_crop_batches(split, *settings, image_size=data.image_size, workers=self.workers)
        return evaluation_batches(split, *settings)


def readable(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches; raises `InputError` at one that cannot be read."""
    while True:
        with bad_input():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _open(cfg: DictConfig) -> Dataset | ImageFolders:
    data = cfg.dataset
    with bad_input():
        if data.name == "imagenet" and data.source != "digits":
            folders = open_imagenet(data.root)
            if len(folders.classes) != data.num_classes:
                raise InputError(
                    f"dataset.num_classes={data.num_classes}, but {folders.root} has {len(folders.classes)} classes."
                )
            return folders
        return load(
            data.name,
            root=data.root,
            source=data.source,
            cache=cfg.paths.cache,
            image_size=data.image_size,
            channels=data.channels,
        )
