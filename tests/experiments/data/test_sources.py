"""Loading a data set by its name: wrong arguments, the digits, and the real CIFAR-10."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_up_cifar import assert_same, load_made_up, write_parquet
from omegaconf import OmegaConf

from rst.experiments.data import Dataset, Split, load
from rst.experiments.data.splits import canonical

CONFIGS = Path(__file__).parents[3] / "configs" / "dataset"


@pytest.mark.parametrize(("key", "value"), [("image_size", 28), ("channels", 1)])
def test_an_error_names_the_wrong_key_and_its_value(tmp_path: Path, key: str, value: object) -> None:
    arguments = {"name": "cifar10", "cache": tmp_path, "image_size": 32, "channels": 3, key: value}
    with pytest.raises(ValueError, match=rf"dataset\.{key}={value}"):
        load(**arguments)


def test_a_root_that_is_no_folder_is_refused_even_if_the_cache_is_full(tmp_path: Path) -> None:
    load_made_up(tmp_path, write_parquet(tmp_path / "root"))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere to look for"):
        load_made_up(tmp_path, tmp_path / "nowhere")


# Digits ---------------------------------------------------------------------------------------------------------------


def test_the_digits_are_1000_training_and_797_test_images_of_ten_classes(tmp_path: Path) -> None:
    data = load("digits", cache=tmp_path, image_size=8, channels=1)
    assert data.train.images.shape == (1000, 1, 8, 8)
    assert data.test.images.shape == (797, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert int(data.train.images.max()) == 255
    assert torch.bincount(data.train.labels).min() > 80
    pixels = torch.cat([data.train.images, data.test.images]).flatten(1)
    assert torch.equal(canonical(Split(pixels, torch.cat([data.train.labels, data.test.labels]))).images, pixels)


def test_the_digits_take_the_size_and_the_channels_of_the_data_set_that_they_stand_for(tmp_path: Path) -> None:
    data = load("cifar10", cache=tmp_path, image_size=32, channels=3, source="digits")
    small = load("digits", cache=tmp_path, image_size=8, channels=1)
    assert data.train.images.shape == (1000, 3, 32, 32)
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])
    assert torch.equal(data.train.labels, small.train.labels)
    shrunk = torch.nn.functional.avg_pool2d(data.train.images[:, :1].float(), 4)
    assert (shrunk - small.train.images).abs().mean() < 20


# The statistics in the configs ----------------------------------------------------------------------------------------


def assert_normalised_by_its_own_statistics(name: str, dataset: Dataset, tolerance: float) -> None:
    """Check the mean and the standard deviation in the config of a data set against its training images."""
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    channels = dataset.train.images.transpose(0, 1).flatten(1)
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(1, keepdim=True)
    mean = shares @ values
    std = ((shares * (values - mean[:, None]).square()).sum(1)).sqrt()
    assert mean.tolist() == pytest.approx(list(config.mean), abs=tolerance)
    assert std.tolist() == pytest.approx(list(config.std), abs=tolerance)


def test_the_digits_are_normalised_by_their_own_statistics(tmp_path: Path) -> None:
    digits = load("digits", cache=tmp_path, image_size=8, channels=1)
    assert_normalised_by_its_own_statistics("digits", digits, 0.01)


def test_the_real_cifar10_is_accepted_and_cached(tmp_path: Path, real_data: Path) -> None:
    arguments = {"cache": tmp_path, "root": str(real_data), "image_size": 32, "channels": 3}
    first = load("cifar10", **arguments)
    assert_normalised_by_its_own_statistics("cifar10", first, 1e-6)
    assert torch.bincount(first.train.labels).tolist() == [5000] * 10
    assert_same(load("cifar10", **arguments), first)


def test_preparing_the_digits_says_that_they_come_with_scikit_learn(
    script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("prepare_data", "digits") == 0
    said = capsys.readouterr().out
    assert said.startswith("digits: 1,000 training and 797 test images, digest ")
    assert said.endswith(". They come with scikit-learn.\n")
