"""The data of a run, from its spec: splits, label noise, ranks, and images that are not those of the spec."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from image_tree import make_image_tree, truncate
from torch import Tensor

from rst.experiments.compose import compose
from rst.experiments.data import FileLoader, Loader, RunData, load, open_folders, readable, with_label_noise
from rst.experiments.errors import InputError
from rst.experiments.spec import RunSpec

CPU = torch.device("cpu")
DIGITS = ["dataset=digits", "model=wrn10_1", "device=cpu"]

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def spec_of_digits(tmp_path: Path, *overrides: str) -> RunSpec:
    return compose([*DIGITS, f"paths.cache={tmp_path / 'cache'}", *overrides])


def spec_of_images(root: Path, *overrides: str) -> RunSpec:
    """A run on the images that `make_image_tree` writes."""
    return compose(
        [
            *("dataset=imagenet", "model=resnet50", "device=cpu", "dataset.num_classes=3", "dataset.image_size=64"),
            *("dataset.train_images=30", "dataset.test_images=12", "recipe.batch_size=8"),
            *("recipe.perturbation_batch=8", f"dataset.root={root}", f"paths.cache={root.parent / 'cache'}"),
            *overrides,
        ]
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_image_tree(tmp_path / "images")


def joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_the_first_images_of_the_canonical_order_are_taken(tmp_path: Path) -> None:
    spec = spec_of_digits(tmp_path, "dataset.train_images=100", "dataset.test_images=40")
    data = RunData(spec, CPU)
    everything = load("digits", cache=tmp_path, image_size=8, channels=1)
    assert torch.equal(data.train.images, everything.train.images[:100])
    assert torch.equal(data.splits["test"].images, everything.test.images[:40])
    assert data.splits.keys() == {"test"}


def test_held_out_images_are_a_validation_split_and_are_not_trained_on(tmp_path: Path) -> None:
    data = RunData(spec_of_digits(tmp_path, "dataset.validation=200"), CPU)
    assert len(data.train) == 800
    kept, held = (
        {image.numpy().tobytes() for image in split.images} for split in (data.train, data.splits["validation"])
    )
    assert not kept & held


def test_wrong_labels_are_drawn_by_the_seed_for_the_training_images_alone(tmp_path: Path) -> None:
    plain = RunData(spec_of_digits(tmp_path), CPU)
    noisy = RunData(spec_of_digits(tmp_path, "dataset.label_noise=0.3", "seed=4"), CPU)
    assert torch.equal(noisy.train.labels, with_label_noise(plain.train.labels, 0.3, 10, seed=4))
    assert torch.equal(noisy.splits["test"].labels, plain.splits["test"].labels)


def test_the_training_batches_are_those_of_the_loader_with_the_keys_of_the_spec(tmp_path: Path) -> None:
    spec = spec_of_digits(
        tmp_path, "seed=3", "augmentation.flip=true", "augmentation.crop_padding=1", "augmentation.cutout=2"
    )
    data = RunData(spec, CPU)
    expected = Loader(
        data.train.images,
        data.train.labels,
        batch_size=spec.recipe.batch_size,
        mean=spec.dataset.mean,
        std=spec.dataset.std,
        flip=True,
        crop_padding=1,
        transforms=data.loader().transforms,
        seed=3,
    )
    for batch, other in zip(data.loader().epoch(1), expected.epoch(1), strict=True):
        assert all(map(torch.equal, batch, other))


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_the_ranks_divide_the_training_batches_and_the_test_images(tmp_path: Path, root: Path, kind: str) -> None:
    spec = spec_of_digits(tmp_path) if kind == "memory" else spec_of_images(root)
    alone = RunData(spec, CPU)
    ranks = [RunData(spec, CPU, rank=rank, world_size=2, local_size=2) for rank in range(2)]
    whole, first, second = (next(data.loader().epoch(0)) for data in (alone, *ranks))
    assert torch.equal(torch.cat([first[0], second[0]]), whole[0])
    images, labels = joined(list(alone.batches("test")))
    for rank, data in enumerate(ranks):
        own_images, own_labels = joined(list(data.batches("test")))
        assert torch.equal(own_images, images[rank::2])
        assert torch.equal(own_labels, labels[rank::2])


def test_a_folder_of_images_is_read_from_its_files(root: Path) -> None:
    data = RunData(spec_of_images(root), CPU)
    assert isinstance(data.loader(), FileLoader)
    assert data.source.digest == open_folders("imagenet", root).digest


# Images that are not those of the spec --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "dataset.train_images=1001",
            r"^dataset\.train_images=1001, but there are only 1000 images: write 1 to 1000\.",
        ),
        ("dataset.test_images=798", r"^dataset\.test_images=798, but there are only 797 images: write 1 to 797\."),
        ("dataset.num_classes=5", r"^dataset\.num_classes=5, but the labels are of 10 classes: write dataset\.num_cl"),
    ],
)
def test_an_error_names_the_key_that_asks_for_what_the_images_do_not_have(
    tmp_path: Path, override: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        RunData(spec_of_digits(tmp_path, override), CPU)


def test_a_folder_with_another_number_of_classes_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=rf"^dataset\.num_classes=4, but {root} has 3 classes: write"):
        RunData(spec_of_images(root, "dataset.num_classes=4"), CPU)


def test_a_folder_with_the_digest_of_the_spec_is_accepted(root: Path) -> None:
    digest = open_folders("imagenet", root).digest
    data = RunData(spec_of_images(root, f"dataset.digest={digest}"), CPU)
    assert data.source.digest == digest


def test_a_folder_with_another_digest_is_refused_in_a_sentence_that_names_both(root: Path) -> None:
    other = shutil.copytree(root, root.parent / "other")
    truncate(other / "val" / "n01" / "n01_0.JPEG")
    expected, found = open_folders("imagenet", root).digest, open_folders("imagenet", other).digest
    with pytest.raises(InputError) as raised:
        RunData(spec_of_images(other, f"dataset.digest={expected}"), CPU)
    assert str(raised.value) == (
        f"dataset.digest={expected}, but the images in {other} have digest {found}: give the folder that the run was "
        "trained on, or leave dataset.digest out."
    )


def test_files_overwritten_since_their_digest_was_kept_are_refused_once_and_then_have_a_new_digest(root: Path) -> None:
    for folder in [*root.iterdir(), *root.glob("*/*")]:
        os.utime(folder, (1_600_000_000, 1_600_000_000))
    before = spec_of_images(root).dataset.digest
    truncate(root / "val" / "n01" / "n01_0.JPEG")
    with pytest.raises(InputError, match=rf"^dataset\.digest={before}, but the images in {root} have digest"):
        RunData(spec_of_images(root), CPU)
    data = RunData(spec_of_images(root), CPU)
    assert data.source.digest == data.spec.dataset.digest != before


def test_a_data_set_in_memory_with_another_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^dataset\.digest=abc, but the images of digits have digest [0-9a-f]{64}: "):
        RunData(spec_of_digits(tmp_path, "dataset.digest=abc"), CPU)


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^No ImageNet images \(.*write dataset\.root=") as raised:
        RunData(spec_of_images(tmp_path / "nowhere"), CPU)
    assert "\n" not in str(raised.value)


def test_an_augmentation_that_does_not_fit_the_images_is_refused(tmp_path: Path) -> None:
    data = RunData(spec_of_digits(tmp_path, "augmentation.cutout=9"), CPU)
    with pytest.raises(InputError, match=r"^augmentation\.cutout=9 is larger than the images: write 0 \(off\) to 8\."):
        data.loader()


def test_a_batch_that_cannot_be_read_is_one_sentence(root: Path) -> None:
    data = RunData(spec_of_images(root), CPU)
    for files in (data.source.train, data.source.test):
        for row in range(len(files)):
            truncate(Path(files.path(row)))
    for batches in (readable(data.loader().epoch(0)), data.batches("test"), data.training_batches(8, batch_size=8)):
        with pytest.raises(InputError, match=r"^[^\n]*\.JPEG cannot be decoded"):
            next(batches)


# Imports --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["rst.experiments.data", "rst.experiments.models"])
def test_importing_the_package_imports_none_of_the_large_libraries(package: str) -> None:
    script = f"import sys, {package}; print(*{{'pandas', 'matplotlib', 'timm', 'torchvision'}} & {{*sys.modules}})"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout == "\n"
