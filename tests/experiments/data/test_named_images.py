"""Images that a command names are used at every scale, and are refused where they cannot be."""

from pathlib import Path

import pytest
import torch
from made_up_cifar import EXPECTED, MADE_UP, write_parquet

from rst.experiments.compose import compose
from rst.experiments.data import RunData
from rst.experiments.data.cifar_files import KNOWN
from rst.experiments.errors import InputError
from rst.experiments.runs.identity import run_id
from rst.experiments.runs.record import open_record
from rst.experiments.spec import RunSpec
from rst.experiments.training import train

KEYS = ("dataset.root", "paths.data")


def spec_of(scale: str, tmp_path: Path, *overrides: str) -> RunSpec:
    """A run of as many images as the made-up data set has."""
    images = ("dataset.train_images=48", "dataset.test_images=20")
    batches = ("recipe.batch_size=16", "recipe.perturbation_batch=8")
    return compose([f"scale={scale}", *images, *batches, f"paths.cache={tmp_path / 'cache'}", *overrides])


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scale", ["smoke", "cpu", "paper"])
def test_images_that_the_command_names_are_used_at_every_scale_and_the_id_says_so(
    scale: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN, "cifar10", MADE_UP)
    spec = spec_of(scale, tmp_path, f"{key}={write_parquet(tmp_path / 'root')}")
    assert RunData(spec, torch.device("cpu")).source.digest == EXPECTED.digest
    assert run_id(spec).startswith("cifar10-resnet18-n48-")
    assert not spec.stands_in


def test_without_a_named_folder_the_smoke_scale_takes_the_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RST_DATA", str(write_parquet(tmp_path / "root")))
    assert run_id(spec_of("smoke", tmp_path)).startswith("digits_as_cifar10-")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_a_named_folder_that_is_not_there_is_refused(scale: str, key: str, tmp_path: Path) -> None:
    spec = spec_of(scale, tmp_path, f"{key}={tmp_path / 'none'}")
    sentence = rf"^there is no folder {tmp_path / 'none'} to look for cifar10 in: write dataset\.root="
    with pytest.raises(InputError, match=sentence):
        RunData(spec, torch.device("cpu"))


def test_a_named_folder_of_imagenet_that_is_not_there_is_refused(tmp_path: Path) -> None:
    spec = compose(["scale=smoke", "dataset=imagenet", "model=resnet50", f"dataset.root={tmp_path / 'none'}"])
    with pytest.raises(InputError, match=rf"^No ImageNet images \({tmp_path / 'none'} has no train and no val"):
        RunData(spec, torch.device("cpu"))


@pytest.mark.parametrize("key", KEYS)
def test_a_run_that_is_done_prints_no_result_for_a_named_folder_that_is_not_there(key: str, tmp_path: Path) -> None:
    done = spec_of("cpu", tmp_path, f"paths.runs={tmp_path / 'runs'}")
    record = open_record(done)
    with record.training(done):
        record.finish({})
    named = spec_of("cpu", tmp_path, f"paths.runs={tmp_path / 'runs'}", f"{key}={tmp_path / 'none'}")
    assert run_id(named) == record.id
    with pytest.raises(InputError, match=rf"^there is no folder {tmp_path / 'none'} to look for"):
        train(named, show_progress=False)
