"""Folders of real photographs, decoded and cropped by workers, against torchvision and plain per-image code."""

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp, kstest
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as tf

from rst.data import Augmentation
from rst.data import imagenet as module
from rst.data.imagenet import (
    FileLoader,
    Files,
    ImageFolders,
    centre_crop,
    centre_crop_batches,
    crop_box,
    decode,
    open_imagenet,
)
from rst.streams import stream

SIZE, CLASSES = 32, ["n01", "n02", "n03"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAINING: dict[str, Any] = {"image_size": SIZE, "batch_size": 8, "mean": MEAN, "std": STD, "flip": True, "workers": 0}

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training and four test images a class, cut out of two photographs, in many sizes and some odd modes."""
    root = tmp_path_factory.mktemp("imagenet")
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    generator = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                width, height = generator.integers(40, 140, 2)
                left, top = generator.integers(0, 640 - width), generator.integers(0, 427 - height)
                image = photographs[index % 2].crop((left, top, left + width, top + height))
                image.save(folder / f"{name}_{index}.JPEG", quality=90)
    for index, mode in enumerate(("L", "CMYK", "RGBA", "P")):
        path = root / "train" / "n02" / f"n02_{index}.JPEG"
        kind = "JPEG" if mode in ("L", "CMYK") else "PNG"  # one of ImageNet's files is a PNG by another name, too
        Image.open(path).convert(mode).save(path, kind)
    return root


@pytest.fixture(scope="module")
def folders(root: Path) -> ImageFolders:
    return open_imagenet(root)


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """A tree to damage."""
    return shutil.copytree(root, tmp_path / "copy")


def training(files: Files, **changes: Any) -> FileLoader:
    return FileLoader(files, **{**TRAINING, **changes})


def evaluation(files: Files, batch_size: int = 5, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    return centre_crop_batches(files, batch_size, MEAN, STD, "cpu", image_size=SIZE, workers=workers)


def assert_same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> None:
    assert len(first) == len(second) > 0
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


# Folders


def test_the_standard_layout_is_found_with_its_classes_in_order(folders: ImageFolders, root: Path) -> None:
    assert folders.classes == CLASSES
    assert (len(folders.train), len(folders.test)) == (30, 12)
    for files, split in ((folders.train, "train"), (folders.test, "val")):
        paths = [files.path(row) for row in range(len(files))]
        assert sorted(paths) == sorted(str(path) for path in (root / split).rglob("*.JPEG"))
        assert [CLASSES[label] for label in files.labels] == [Path(path).parent.name for path in paths]


@pytest.mark.parametrize("place", ["imagenet", "ILSVRC/Data/CLS-LOC"])
def test_the_layout_is_found_in_the_usual_places_below_the_root(root: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).symlink_to(root)
    assert open_imagenet(tmp_path).root == tmp_path / place


def test_the_order_depends_on_the_names_alone_and_mixes_the_classes(folders: ImageFolders, copy: Path) -> None:
    again = open_imagenet(copy)
    assert again.train.names.tolist() == folders.train.names.tolist()
    assert set(folders.train[:10].labels.tolist()) == {0, 1, 2}
    assert len(folders.train[:10]) == 10


def test_rows_select_files_with_their_labels(folders: ImageFolders) -> None:
    rows = torch.tensor([4, 0, 7])
    chosen = folders.train[rows]
    assert [chosen.path(row) for row in range(3)] == [folders.train.path(int(row)) for row in rows]
    assert chosen.labels.tolist() == folders.train.labels[rows].tolist()


def test_the_digest_tells_other_names_and_sizes_apart(folders: ImageFolders, copy: Path) -> None:
    assert open_imagenet(copy).digest == folders.digest
    truncate(copy / "val" / "n01" / "n01_0.JPEG")
    shorter = open_imagenet(copy).digest
    (copy / "val" / "n01" / "n01_0.JPEG").rename(copy / "val" / "n01" / "other.JPEG")
    assert len({folders.digest, shorter, open_imagenet(copy).digest}) == 3


@pytest.mark.parametrize(
    ("harm", "error", "sentence"),
    [
        (lambda root: shutil.rmtree(root / "val"), FileNotFoundError, "{root} has no val;.*write dataset.root="),
        (lambda root: shutil.rmtree(root / "train"), FileNotFoundError, "{root} has no train;.*write dataset.root="),
        (lambda root: shutil.rmtree(root), FileNotFoundError, "{root} has no train and no val;"),
        (lambda root: shutil.rmtree(root / "val" / "n02"), ValueError, "{root}/train has the class n02 and {root}/val"),
        (lambda root: shutil.rmtree(root / "train" / "n02"), ValueError, "{root}/val has the class n02 and {root}/tra"),
        (
            lambda root: [file.unlink() for file in (root / "train" / "n03").iterdir()],
            FileNotFoundError,
            "{root}/train/n03 has no images: copy the folder of this class again",
        ),
        (
            lambda root: (
                [shutil.move(file, root / "val") for file in (root / "val").glob("*/*")]
                + [folder.rmdir() for folder in (root / "val").glob("n*") if folder.is_dir()]
            ),
            FileNotFoundError,
            "{root}/val has no class folders: move each image to {root}/val/<class>/",
        ),
        (
            lambda root: [file.unlink() for file in (root / "val").glob("*/*")],
            FileNotFoundError,
            "{root}/val/n01 has no images",
        ),
    ],
)
def test_an_incomplete_tree_is_refused_in_one_sentence(copy: Path, harm: Any, error: type, sentence: str) -> None:
    harm(copy)
    with pytest.raises(error, match=sentence.format(root=copy)) as raised:
        open_imagenet(copy)
    assert "\n" not in str(raised.value)


# Damaged files and odd modes


def test_the_check_passes_on_a_sound_tree(folders: ImageFolders) -> None:
    folders.check()


def test_the_check_names_every_damaged_file_in_one_sentence(copy: Path) -> None:
    truncated, empty, text = (
        copy / name for name in ("train/n01/n01_3.JPEG", "train/n03/n03_0.JPEG", "val/n02/n02_1.JPEG")
    )
    truncate(truncated)
    empty.write_bytes(b"")
    text.write_text("not an image")
    with pytest.raises(ValueError, match=r"3 of the 42 images in .* cannot be decoded, copy them again") as raised:
        open_imagenet(copy).check()
    message = str(raised.value)
    assert all(str(path) in message for path in (truncated, empty, text))
    assert message.count(".JPEG") == 3
    assert "\n" not in message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_damaged_in_training_or_evaluation_is_named_in_one_sentence(copy: Path, workers: int) -> None:
    folders = open_imagenet(copy)
    for files, batches in (
        (folders.train, training(folders.train, batch_size=30, workers=workers).epoch(0)),
        (folders.test, evaluation(folders.test, workers=workers)),
    ):
        path = files.path(11)
        truncate(Path(path))
        with pytest.raises(ValueError, match=r"^[^\n]* cannot be decoded \([^\n]*\): copy[^\n]*$") as raised:
            list(batches)
        assert str(raised.value).startswith(path)
        assert not active_children()  # although the traceback still stands


def test_a_file_that_is_gone_is_named(copy: Path) -> None:
    files = open_imagenet(copy).train
    os.remove(files.path(0))
    with pytest.raises(ValueError, match=f"^{files.path(0)} cannot be decoded .*No such file"):
        list(training(files, batch_size=30, workers=2).epoch(0))


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("1", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("P", "GIF")])
def test_every_mode_becomes_rgb_as_pillow_has_it(tmp_path: Path, mode: str, kind: str) -> None:
    photograph = Image.fromarray(load_sample_images().images[1]).crop((200, 100, 260, 150))
    path = tmp_path / "image.JPEG"
    photograph.convert(mode).save(path, kind)
    image = decode(str(path))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(path).convert("RGB")))


def test_a_cmyk_photograph_keeps_its_colours(tmp_path: Path) -> None:
    photograph = Image.fromarray(load_sample_images().images[1]).crop((200, 100, 260, 150))
    photograph.convert("CMYK").save(tmp_path / "image.JPEG", quality=95)
    difference = np.asarray(decode(str(tmp_path / "image.JPEG")), dtype=float) - np.asarray(photograph, dtype=float)
    assert np.abs(difference).mean() < 4


def test_16_bits_are_scaled_to_8_and_not_clipped(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey * 257).save(tmp_path / "image.JPEG", "PNG")
    image = np.asarray(decode(str(tmp_path / "image.JPEG")))
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2))


# Training batches


def test_training_batches_are_normalised_floats_and_drop_the_remainder(folders: ImageFolders) -> None:
    loader = training(folders.train)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 3
    for images, labels in batches:
        assert (images.shape, images.dtype, images.is_contiguous()) == ((8, 3, SIZE, SIZE), torch.float32, True)
        assert (labels.shape, labels.dtype) == ((8,), torch.int64)


def test_a_batch_equals_decode_crop_resize_flip_and_normalise_by_torchvision(folders: ImageFolders) -> None:
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


def test_an_epoch_sees_each_image_once_in_an_order_of_its_own(folders: ImageFolders) -> None:
    # The row of an image stands in its label.
    files = Files(folders.train.folder, folders.train.names, torch.arange(30))
    loader = training(files, batch_size=10)
    first, second = (torch.cat([labels for _, labels in loader.epoch(epoch)]).tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second


def test_batches_do_not_depend_on_the_number_of_workers(folders: ImageFolders) -> None:
    expected = list(training(folders.train).epoch(1))
    for workers in (1, 3):
        assert_same(list(training(folders.train, workers=workers).epoch(1)), expected)


def test_crops_change_with_the_seed_and_the_epoch_and_with_nothing_else(folders: ImageFolders) -> None:
    def crop(seed: int, epoch: int) -> Tensor:
        return next(training(folders.train[:1], batch_size=1, seed=seed).epoch(epoch))[0]

    assert torch.equal(crop(0, 0), crop(0, 0))
    assert not torch.equal(crop(0, 0), crop(1, 0))
    assert not torch.equal(crop(0, 0), crop(0, 1))


def test_an_epoch_resumes_at_any_step(folders: ImageFolders) -> None:
    loader = training(folders.train, transforms=Augmentation(mixup_alpha=1.0, cutout=8).transforms(SIZE, 3))
    whole = list(loader.epoch(2))
    for step in range(len(loader)):
        assert_same(list(loader.epoch(2, step)), whole[step:])
    assert list(loader.epoch(2, len(loader))) == []


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(mixup_alpha=1.0, cutout=8)])
def test_the_ranks_share_the_batch_that_one_device_would_see(folders: ImageFolders, augmentation: Augmentation) -> None:
    transforms = augmentation.transforms(SIZE, 3)
    whole = list(training(folders.train, transforms=transforms).epoch(0))
    ranks = [training(folders.train, transforms=transforms, rank=rank, world_size=4).epoch(0) for rank in range(4)]
    shares = [tuple(map(torch.cat, zip(*step, strict=True))) for step in zip(*ranks, strict=True)]
    assert_same(shares, whole)


def test_a_rank_decodes_only_its_share_unless_images_are_mixed(
    folders: ImageFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(module, "decode", lambda path: decoded.append(path) or decode(path))
    next(training(folders.train, rank=1, world_size=4).epoch(0))
    assert len(decoded) == 2


def test_mixup_and_cutout_are_applied_to_the_normalised_batch(folders: ImageFolders) -> None:
    transforms = Augmentation(mixup_alpha=1.0, cutout=8).transforms(SIZE, 3)
    plain = training(folders.train, seed=4).epoch(1)
    augmented = training(folders.train, seed=4, transforms=transforms).epoch(1)
    for step, (mixed, (images, labels)) in enumerate(zip(augmented, plain, strict=True)):
        generator = stream("augment", 4, 1, step)
        for transform in transforms:
            images, labels = transform(images, labels, generator)
        assert_same([mixed], [(images, labels)])


def test_reading_leaves_the_global_random_numbers_alone(folders: ImageFolders) -> None:
    before = torch.get_rng_state()
    list(training(folders.train, workers=2).epoch(0))
    list(evaluation(folders.test, workers=2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 31}, "recipe.batch_size=31 does not fit 30 training images: write 1 to 30"),
        ({"batch_size": 0}, "recipe.batch_size=0 does not fit"),
        ({"world_size": 3}, "recipe.batch_size=8 does not split over 3 devices: write a multiple of 3"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(folders: ImageFolders, changes: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        training(folders.train, **changes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_on_the_cpu(folders: ImageFolders) -> None:
    on_gpu = list(training(folders.train, device="cuda", workers=2).epoch(0))
    for (images, labels), (expected, expected_labels) in zip(on_gpu, training(folders.train).epoch(0), strict=True):
        torch.testing.assert_close(images.cpu(), expected, atol=1e-6, rtol=0)
        assert torch.equal(labels.cpu(), expected_labels)


# Workers


def test_a_stop_request_to_the_whole_job_leaves_the_workers_at_work(folders: ImageFolders) -> None:
    batches = training(folders.train, workers=2, batch_size=4).epoch(0)
    received = [next(batches)]
    workers = active_children()
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT):
        # From a process that is not the trainer, as a scheduler or a terminal sends it.
        subprocess.run(["kill", f"-{number}", *(str(worker.pid) for worker in workers)], check=True)
    received += batches
    assert_same(received, list(training(folders.train, batch_size=4).epoch(0)))


def test_an_epoch_left_early_ends_its_workers(folders: ImageFolders) -> None:
    batches = training(folders.train, workers=2).epoch(0)
    next(batches)
    assert len(active_children()) == 2
    batches.close()
    assert not active_children()


def test_a_program_that_fails_with_an_epoch_open_ends_at_once(root: Path) -> None:
    script = f"""
from rst.data.imagenet import FileLoader, open_imagenet
files = open_imagenet({str(root)!r}).train
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


# The crop box


def boxes(width: int, height: int, count: int = 2000) -> np.ndarray:
    return np.array([crop_box(width, height, stream("crop", index)) for index in range(count)])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (300, 300), (1000, 400)])
def test_crop_boxes_are_distributed_as_those_of_torchvision(width: int, height: int) -> None:
    left, top, right, bottom = boxes(width, height).T
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(2000)])
    assert ((left >= 0) & (top >= 0) & (right <= width) & (bottom <= height)).all()
    for ours, reference in zip((top, left, bottom - top, right - left), theirs.T, strict=True):
        assert ks_2samp(ours, reference).pvalue > 1e-3


def test_crop_boxes_have_uniform_areas_and_log_uniform_aspects_in_range() -> None:
    left, top, right, bottom = boxes(600, 600, 4000).T
    area, aspect = (right - left) * (bottom - top) / 600**2, (right - left) / (bottom - top)
    assert 0.079 < area.min() < 0.09
    assert 0.97 < area.max() <= 1
    assert 0.745 < aspect.min() < 0.76
    assert 1.31 < aspect.max() < 1.342
    small = area < 0.5  # there every draw fits, so that none is drawn again
    assert kstest((area[small] - 0.08) / 0.42, "uniform").pvalue > 1e-3
    assert kstest((np.log(aspect[small]) / math.log(4 / 3) + 1) / 2, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("width", "height", "box"), [(1000, 1, (499, 0, 500, 1)), (1000, 30, (480, 0, 520, 30)), (3, 90, (0, 43, 3, 47))]
)
def test_an_image_too_long_for_any_crop_gives_its_centre(
    width: int, height: int, box: tuple[int, int, int, int]
) -> None:
    assert {tuple(found) for found in boxes(width, height, 20).tolist()} == {box}


# Evaluation batches


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_equals_resize_and_centre_crop_by_torchvision(folders: ImageFolders, workers: int) -> None:
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


@pytest.mark.parametrize("size", [(500, 375), (375, 501), (333, 500), (256, 256), (257, 300), (40, 1000)])
def test_evaluation_at_224_pixels_equals_torchvision(size: tuple[int, int]) -> None:
    photograph = Image.fromarray(load_sample_images().images[0]).resize(size)
    expected = tf.center_crop(tf.resize(photograph, [256], v2.InterpolationMode.BICUBIC), [224])
    np.testing.assert_array_equal(np.asarray(centre_crop(photograph, 0, size=224)), np.asarray(expected))
