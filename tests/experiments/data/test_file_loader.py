"""Batches of image files that workers decode, against torchvision and plain code for one image."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import active_children
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from image_tree import make_image_tree, truncate
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tf

from rst.experiments.data import (
    FileLoader,
    Files,
    ImageFolders,
    centre_crop_batches,
    file_loader,
    open_folders,
)
from rst.experiments.data.augment import BatchTransform, Cutout, Mixup
from rst.experiments.data.crops import crop_box, decode
from rst.streams import stream

SIZE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAINING: dict[str, Any] = {"image_size": SIZE, "batch_size": 8, "mean": MEAN, "std": STD, "flip": True, "workers": 0}

# The tests start more workers than a small machine has cores, of which the DataLoader warns.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_tree(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def folders(root: Path) -> ImageFolders:
    return open_folders("imagenet", root)


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(root, tmp_path / "copy")


def training(files: Files, **changes: Any) -> FileLoader:
    """A loader without workers, with other arguments where they are given."""
    return FileLoader(files, **{**TRAINING, **changes})


def evaluation(files: Files, batch_size: int = 5, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    return centre_crop_batches(files, batch_size, MEAN, STD, "cpu", image_size=SIZE, workers=workers)


def assert_same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> None:
    assert len(first) == len(second) > 0
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


# Training batches -----------------------------------------------------------------------------------------------------


def test_training_batches_are_normalised_floats_and_the_last_partial_one_is_dropped(folders: ImageFolders) -> None:
    loader = training(folders.train)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 3
    for images, labels in batches:
        assert (images.shape, images.dtype, images.is_contiguous()) == ((8, 3, SIZE, SIZE), torch.float32, True)
        assert (labels.shape, labels.dtype) == ((8,), torch.int64)


def test_a_batch_equals_decoding_cropping_resizing_flipping_and_normalising_by_torchvision(
    folders: ImageFolders,
) -> None:
    images, labels = (torch.cat(parts) for parts in zip(*training(folders.train, seed=3).epoch(5), strict=True))
    order = torch.randperm(30, generator=stream("order", 3, 5))[:24]
    assert labels.tolist() == folders.train.labels[order].tolist()
    mirrored = 0
    for image, row in zip(images, order.tolist(), strict=True):
        generator = stream("crop", 3, 5, row)
        photograph = Image.open(folders.train.path(row)).convert("RGB")
        left, top, right, bottom = crop_box(*photograph.size, generator)
        plain: Any = tf.resized_crop(
            photograph, top, left, bottom - top, right - left, [SIZE, SIZE], v2.InterpolationMode.BICUBIC
        )
        if torch.rand((), generator=generator) < 0.5:
            plain, mirrored = tf.horizontal_flip(plain), mirrored + 1
        plain = tf.normalize(tf.to_dtype(tf.pil_to_tensor(plain), scale=True), MEAN, STD)
        torch.testing.assert_close(image, plain, atol=1e-5, rtol=0)
    assert 0 < mirrored < 24


def test_without_flip_no_crop_is_mirrored(folders: ImageFolders) -> None:
    plain, flipped = (
        torch.cat([images for images, _ in training(folders.train, flip=flip).epoch(0)]) for flip in (False, True)
    )
    same, mirrored = ((plain == other).flatten(1).all(1) for other in (flipped, flipped.flip(-1)))
    assert (same ^ mirrored).all()
    assert 0 < mirrored.sum() < 24


def test_an_epoch_shows_each_image_once_in_an_order_of_its_own(folders: ImageFolders) -> None:
    # The label of each image is its row.
    files = Files(folders.train.folder, folders.train.names, torch.arange(30))
    loader = training(files, batch_size=10)
    first, second = (torch.cat([labels for _, labels in loader.epoch(epoch)]).tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second


def test_the_batches_do_not_depend_on_the_number_of_workers(folders: ImageFolders) -> None:
    expected = list(training(folders.train).epoch(1))
    for workers in (1, 3):
        assert_same(list(training(folders.train, workers=workers).epoch(1)), expected)


def test_the_crop_of_an_image_changes_with_the_seed_and_the_epoch_alone(folders: ImageFolders) -> None:
    def crop(seed: int, epoch: int) -> Tensor:
        return next(training(folders.train[:1], batch_size=1, seed=seed).epoch(epoch))[0]

    assert torch.equal(crop(0, 0), crop(0, 0))
    assert not torch.equal(crop(0, 0), crop(1, 0))
    assert not torch.equal(crop(0, 0), crop(0, 1))


def test_an_epoch_that_starts_at_any_step_continues_as_the_whole_epoch_does(folders: ImageFolders) -> None:
    loader = training(folders.train, transforms=[Mixup(1.0, 3), Cutout(8)])
    whole = list(loader.epoch(2))
    for step in range(len(loader)):
        assert_same(list(loader.epoch(2, step)), whole[step:])
    assert list(loader.epoch(2, len(loader))) == []


@pytest.mark.parametrize("transforms", [[], [Mixup(1.0, 3), Cutout(8)]])
def test_the_batches_of_all_ranks_make_up_the_batch_that_one_device_sees(
    folders: ImageFolders, transforms: list[BatchTransform]
) -> None:
    whole = list(training(folders.train, transforms=transforms).epoch(0))
    ranks = [training(folders.train, transforms=transforms, rank=rank, world_size=4).epoch(0) for rank in range(4)]
    shares = [tuple(map(torch.cat, zip(*step, strict=True))) for step in zip(*ranks, strict=True)]
    assert_same(shares, whole)


def test_a_rank_decodes_only_its_own_images_unless_images_are_mixed(
    folders: ImageFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(file_loader, "decode", lambda path: decoded.append(path) or decode(path))
    next(training(folders.train, rank=1, world_size=4).epoch(0))
    assert len(decoded) == 2


def test_mixup_and_cutout_are_applied_to_the_normalised_batch(folders: ImageFolders) -> None:
    transforms = [Mixup(1.0, 3), Cutout(8)]
    plain = training(folders.train, seed=4).epoch(1)
    augmented = training(folders.train, seed=4, transforms=transforms).epoch(1)
    for step, (mixed, (images, labels)) in enumerate(zip(augmented, plain, strict=True)):
        generator = stream("augment", 4, 1, step)
        for transform in transforms:
            images, labels = transform(images, labels, generator)
        assert_same([mixed], [(images, labels)])


def test_loading_draws_nothing_from_the_global_generator(folders: ImageFolders) -> None:
    before = torch.get_rng_state()
    list(training(folders.train, workers=2).epoch(0))
    list(evaluation(folders.test, workers=2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_batches_on_a_gpu_are_those_on_the_cpu(folders: ImageFolders) -> None:
    on_gpu = list(training(folders.train, device="cuda", workers=2).epoch(0))
    for (images, labels), (expected, expected_labels) in zip(on_gpu, training(folders.train).epoch(0), strict=True):
        torch.testing.assert_close(images.cpu(), expected, atol=1e-6, rtol=0)
        assert torch.equal(labels.cpu(), expected_labels)


# Evaluation batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_evaluation_batches_equal_resizing_and_cropping_the_centre_by_torchvision(
    folders: ImageFolders, workers: int
) -> None:
    pipeline = v2.Compose(
        [
            v2.Resize(round(SIZE * 256 / 224), interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(SIZE),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    batches = list(evaluation(folders.test, workers=workers))
    assert [len(labels) for _, labels in batches] == [5, 5, 2]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(labels, folders.test.labels)
    for row, image in enumerate(images):
        expected = pipeline(Image.open(folders.test.path(row)).convert("RGB"))
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


# Damaged files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_found_damaged_in_training_or_evaluation_is_named_in_one_sentence(copy: Path, workers: int) -> None:
    folders = open_folders("imagenet", copy)
    for files, batches in (
        (folders.train, training(folders.train, batch_size=30, workers=workers).epoch(0)),
        (folders.test, evaluation(folders.test, workers=workers)),
    ):
        path = files.path(11)
        truncate(Path(path))
        with pytest.raises(ValueError, match=r"^[^\n]* cannot be decoded \([^\n]*\): copy[^\n]*$") as raised:
            list(batches)
        assert str(raised.value).startswith(path)
        assert not active_children()  # The workers have ended, although the traceback still refers to the iterator.


def test_a_file_that_has_been_deleted_is_named(copy: Path) -> None:
    files = open_folders("imagenet", copy).train
    os.remove(files.path(0))
    with pytest.raises(ValueError, match=f"^{files.path(0)} cannot be decoded .*No such file"):
        list(training(files, batch_size=30, workers=2).epoch(0))


# Workers --------------------------------------------------------------------------------------------------------------


def test_the_workers_go_on_after_a_request_to_stop_that_reaches_every_process(folders: ImageFolders) -> None:
    batches = training(folders.train, workers=2, batch_size=4).epoch(0)
    received = [next(batches)]
    workers = active_children()
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT):
        # Another process than the parent of the workers sends it, as a scheduler or a terminal does.
        subprocess.run(["kill", f"-{number}", *(str(worker.pid) for worker in workers)], check=True)
    received += batches
    assert_same(received, list(training(folders.train, batch_size=4).epoch(0)))


def test_a_worker_that_is_killed_is_answered_by_a_sentence_with_a_fix(folders: ImageFolders) -> None:
    batches = training(folders.train, workers=2, batch_size=4).epoch(0)
    next(batches)
    for worker in active_children():
        worker.kill()
        wait([worker.sentinel])  # Its death raises nothing here, as it may be in the middle of a training step.
    with pytest.raises(ValueError, match=r"^a process that decodes images was killed.*: take a smaller recipe\.batch_"):
        list(batches)


def test_an_epoch_that_is_closed_early_ends_its_workers(folders: ImageFolders) -> None:
    batches = training(folders.train, workers=2).epoch(0)
    next(batches)
    assert len(active_children()) == 2
    batches.close()
    assert not active_children()


def test_a_program_that_fails_in_the_middle_of_an_epoch_ends_at_once(root: Path) -> None:
    script = f"""
from rst.experiments.data import FileLoader, open_folders
files = open_folders("imagenet", {str(root)!r}).train
batches = FileLoader(files, image_size=8, batch_size=2, mean=[0.5] * 3, std=[0.5] * 3, workers=2).epoch(0)
next(batches)
raise RuntimeError("diverged")
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("RuntimeError: diverged" in line for line in iter(process.stderr.readline, ""))
    try:
        assert process.wait(10) == 1
    finally:
        process.kill()
