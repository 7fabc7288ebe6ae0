"""The data of a run: the splits that its spec describes, and their batches on its device."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rst.experiments.data.augment import transforms
from rst.experiments.data.file_loader import FileLoader, centre_crop_batches
from rst.experiments.data.folder_cache import forget_facts
from rst.experiments.data.image_folders import Files, ImageFolders, open_folders
from rst.experiments.data.loader import Loader, evaluation_batches
from rst.experiments.data.sources import load
from rst.experiments.data.splits import Dataset, Split, hold_out, with_label_noise
from rst.experiments.devices import available_cores
from rst.experiments.errors import InputError, bad_input
from rst.experiments.spec import RunSpec

EVALUATION_BATCH = 500
"""Images in a batch of the test or validation split."""


class RunData:
    """The splits of a run: train, test and, if images are held out, validation.

    CIFAR and the digits are in memory, ImageNet and users' own images in files; the batches of both have the same form.

    Args:
        spec: the run.
        device: where the batches are put.
        rank: number of this rank, from 0.
        world_size: number of ranks.
        local_size: number of ranks on this machine, which share its cores.

    Attributes:
        source: the data set as it was opened, with its ``digest``.
        train: the training images, with wrong labels where the spec asks for them.
        splits: the splits to evaluate on: ``test`` and perhaps ``validation``.

    Raises:
        InputError: the images are missing, damaged, or not those that the spec describes.
    """

    def __init__(
        self, spec: RunSpec, device: torch.device, rank: int = 0, world_size: int = 1, local_size: int = 1
    ) -> None:
        self.spec, self.device, self.rank, self.world_size = spec, device, rank, world_size
        self.workers = max(1, available_cores() // local_size)
        self.source = open_images(spec)
        data, train, test = spec.dataset, self.source.train, self.source.test
        for key, wanted, split in (("train_images", data.train_images, train), ("test_images", data.test_images, test)):
            if wanted > len(split):
                raise InputError(
                    f"dataset.{key}={wanted}, but there are only {len(split)} images: write 1 to {len(split)}."
                )
        classes = int(max(train.labels.max(), test.labels.max())) + 1
        if classes > data.num_classes:
            raise InputError(
                f"dataset.num_classes={data.num_classes}, but the labels are of {classes} classes: "
                f"write dataset.num_classes={classes}."
            )
        train, self.splits = train[: data.train_images], {"test": test[: data.test_images]}
        if data.validation:
            train, self.splits["validation"] = hold_out(train, data.validation, seed=0)
        labels = with_label_noise(train.labels, data.label_noise, data.num_classes, spec.seed)
        self.train = replace(train, labels=labels)

    def loader(self) -> Loader | FileLoader:
        """The loader of this rank's augmented training batches. Raises `InputError` where a key does not fit."""
        spec, data, train, augmentation = self.spec, self.spec.dataset, self.train, self.spec.augmentation
        with bad_input():
            settings: dict[str, Any] = {
                "batch_size": spec.recipe.batch_size,
                "mean": data.mean,
                "std": data.std,
                "flip": augmentation.flip,
                "transforms": transforms(augmentation, data.image_size, data.num_classes),
                "seed": spec.seed,
                "device": self.device,
                "rank": self.rank,
                "world_size": self.world_size,
            }
            if isinstance(train, Files):
                return FileLoader(train, image_size=data.image_size, workers=self.workers, **settings)
            return Loader(train.images, train.labels, crop_padding=augmentation.crop_padding, **settings)

    def batches(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of the split ``name`` in order and not augmented; every rank has every ``world_size``-th of them.

        Yields normalised images, float32 [B, C, H, W], and labels, int64 [B].

        Raises:
            InputError: a file cannot be decoded; the sentence names it.
        """
        return self._in_order(self.splits[name][self.rank :: self.world_size], EVALUATION_BATCH)

    def training_batches(self, images: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first ``images`` training images as `batches` has those of a split, but all of them on this rank."""
        return self._in_order(self.train[:images], batch_size)

    def _in_order(self, split: Split | Files, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        data = self.spec.dataset
        settings = (batch_size, data.mean, data.std, self.device)
        if isinstance(split, Files):
            crops = centre_crop_batches(split, *settings, image_size=data.image_size, workers=self.workers)
            return readable(crops)
        return evaluation_batches(split, *settings)


def in_folders(spec: RunSpec) -> bool:
    """Whether the images of a run are files in folders, one for each class."""
    return spec.dataset.name in ("imagenet", "folder") and spec.dataset.source != "digits"


def readable(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches; raises `InputError` at a batch that cannot be read, naming the file."""
    while True:
        with bad_input():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def open_images(spec: RunSpec) -> Dataset | ImageFolders:
    """The data set of a run, checked against its digest and its number of classes. Image files are listed, not read.

    Raises:
        InputError: the images are missing, or not those that the spec describes.
    """
    data = spec.dataset
    source: Dataset | ImageFolders
    with bad_input():
        if in_folders(spec):
            source = open_folders(data.name, data.root)
        else:
            source = load(
                data.name,
                root=data.root,
                source=data.source,
                cache=spec.paths.cache,
                image_size=data.image_size,
                channels=data.channels,
            )
        if data.digest is not None and data.digest != source.digest:
            where = f"of {data.name}"
            if isinstance(source, ImageFolders):
                where = f"in {source.root}"
                forget_facts(source.root, spec.paths.cache)
            raise InputError(
                f"dataset.digest={data.digest}, but the images {where} have digest {source.digest}: give the folder "
                "that the run was trained on, or leave dataset.digest out."
            )
    if isinstance(source, ImageFolders) and len(source.classes) != data.num_classes:
        raise InputError(
            f"dataset.num_classes={data.num_classes}, but {source.root} has {len(source.classes)} classes: "
            f"write dataset.num_classes={len(source.classes)}."
        )
    return source
