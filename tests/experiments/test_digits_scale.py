"""At ``scale=digits`` every CIFAR choice becomes handwritten digits with wrong labels, and a network that fits them."""

from pathlib import Path

import pytest
import torch

from rst.experiments.build import build_model
from rst.experiments.compose import compose
from rst.experiments.data import RunData
from rst.experiments.errors import InputError, NotAtThisScale
from rst.experiments.runs.identity import run_id
from rst.experiments.runs.record import open_record
from rst.experiments.tables.expansion import load_table
from rst.experiments.training import train

NETWORKS = ("vgg16_bn", "resnet18", "wrn28_10", "pyramidnet164", "vit_ti", "vit_s", "vit_b")
CPU = torch.device("cpu")


@pytest.mark.parametrize(("dataset", "wrong"), [("cifar10", 200), ("cifar100", 400)])
def test_a_data_set_of_cifar_becomes_digits_with_its_own_share_of_wrong_labels(dataset: str, wrong: int) -> None:
    spec = compose(["scale=digits", f"dataset={dataset}"])
    noisy = RunData(spec, CPU).train.labels
    clean = RunData(spec.changed(dataset={"label_noise": 0.0}), CPU).train.labels
    assert (len(noisy), int((noisy != clean).sum())) == (1000, wrong)
    assert run_id(spec).startswith("digits-resnet18-n1000-")


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_has_a_slim_version_for_these_images(network: str) -> None:
    spec = compose(["scale=digits", f"model={network}"])
    model = build_model(spec, CPU)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert 20_000 < sum(parameter.numel() for parameter in model.parameters()) < 300_000


@pytest.mark.parametrize("network", NETWORKS)
def test_no_augmentation_hides_the_wrong_labels(network: str) -> None:
    augmentation = compose(["scale=digits", f"model={network}"]).augmentation
    assert not any(augmentation.model_dump().values())


def test_cutout_takes_as_large_a_share_of_the_image_as_on_cifar() -> None:
    small, full = (compose([scale, "augmentation=cutout"]) for scale in ("scale=digits", "scale=paper"))
    shares = [spec.augmentation.cutout / spec.dataset.image_size for spec in (small, full)]
    assert shares[0] == shares[1]


def test_both_data_sets_of_a_table_have_the_same_runs_but_for_the_wrong_labels() -> None:
    cells = load_table("table01", ["scale=digits"]).cells
    specs = {cell.dataset: cell.spec for cell in cells if (cell.row, cell.network) == ("SAM", "ResNet18")}
    assert specs["Cifar10"].changed(dataset={"label_noise": 0.4}) == specs["Cifar100"]


def test_imagenet_cannot_be_made_this_small() -> None:
    with pytest.raises(NotAtThisScale, match=r"^scale=digits has no imagenet, only digits: "):
        compose(["scale=digits", "dataset=imagenet", "model=resnet50"])


@pytest.mark.parametrize("key", ["dataset.root", "paths.data"])
def test_a_folder_of_images_is_refused(key: str) -> None:
    with pytest.raises(InputError, match=rf"^{key} has no effect on dataset=digits, whose images are embedded: "):
        compose(["scale=digits", f"{key}=somewhere"])


def test_sam_does_not_learn_the_wrong_labels_that_sgd_learns(tmp_path: Path) -> None:
    errors = {}
    for scheme in ("sgd", "sam"):
        spec = compose(["scale=digits", "model=wrn28_10", f"scheme={scheme}", f"paths.runs={tmp_path}"])
        train(spec, show_progress=False)
        errors[scheme] = open_record(spec).summary
    assert errors["sgd"]["train_error"] < 2  # percent
    assert errors["sam"]["train_error"] > 15
    assert errors["sam"]["test_error"] < 5 < errors["sgd"]["test_error"]
