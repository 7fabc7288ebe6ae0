"""Recipes: the data set and the network alone choose the paper's hyperparameters, and every combination trains."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rst.experiments.compose import compose
from rst.experiments.spec import RunSpec
from rst.experiments.training import train
from rst.gate import Gate

# Tables 16, 17, 18 and 12 of the paper, and the single-GPU rows of Table 14. What the tables leave out (momentum,
# clipping, how many images share a perturbation) is as in the authors' code. `recipe.l2` is weight decay in the loss.
TABLE_16 = {
    "recipe.epochs": 200,
    "recipe.batch_size": 256,
    "optimizer.name": "sgd",
    "optimizer.lr": 0.1,
    "recipe.l2": 1e-3,
    "optimizer.weight_decay": 0.0,
    "variant.rho": 0.1,
    "recipe.warmup_epochs": 0,
    "recipe.perturbation_batch": 64,
    "recipe.clip_norm": 5.0,
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": True,
    "augmentation.flip": True,
    "augmentation.crop_padding": 4,
    "augmentation.mixup_alpha": 0.0,
    "augmentation.cutout": 0,
}
TABLE_16_PYRAMIDNET = TABLE_16 | {"recipe.l2": 5e-4}
TABLE_17 = {
    "augmentation.mixup_alpha": 1.0,
    "recipe.epochs": 1200,
    "recipe.warmup_epochs": 40,
    "recipe.batch_size": 256,
    "optimizer.name": "adamw",
    "optimizer.lr": 5e-4,
    "optimizer.weight_decay": 0.03,
    "recipe.l2": 0.0,
    "variant.rho": 0.1,
    "recipe.perturbation_batch": 64,
    "recipe.clip_norm": 5.0,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "augmentation.flip": True,
    "augmentation.crop_padding": 4,
    "augmentation.cutout": 0,
}
TABLE_18 = {
    "recipe.epochs": 100,
    "recipe.batch_size": 512,
    "optimizer.name": "sgd",
    "optimizer.lr": 0.2,
    "recipe.l2": 1e-4,
    "optimizer.weight_decay": 0.0,
    "variant.rho": 0.05,
    "recipe.warmup_epochs": 0,
    "recipe.perturbation_batch": 128,
    "recipe.clip_norm": 5.0,
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": True,
    "augmentation.mixup_alpha": 0.0,
    "augmentation.cutout": 0,
}
TABLE_12 = TABLE_17 | {
    "augmentation.mixup_alpha": 0.0,
    "recipe.epochs": 300,
    "optimizer.lr": 1e-3,
    "optimizer.weight_decay": 0.3,
}
TABLE_14_SINGLE_GPU = TABLE_16 | {
    "recipe.batch_size": 128,
    "recipe.perturbation_batch": 128,
    "optimizer.lr": 0.05,
    "optimizer.nesterov": False,
    "optimizer.weight_decay": 5e-4,
    "recipe.l2": 0.0,
    "recipe.clip_norm": None,
}

CIFAR_NETWORKS = {
    **dict.fromkeys(("resnet18", "wrn28_10", "wrn16_1", "wrn16_2", "wrn10_1", "wrn10_2", "vgg16_bn"), TABLE_16),
    "pyramidnet164": TABLE_16_PYRAMIDNET,
    **dict.fromkeys(("vit_ti", "vit_s", "vit_b"), TABLE_17),
}
RECIPES = {
    **{(model, data): recipe for model, recipe in CIFAR_NETWORKS.items() for data in ("cifar10", "cifar100")},
    **{(model, "imagenet"): TABLE_18 for model in ("resnet50", "resnet101")},
}
SCHEMES = ("sgd", "sam", "gnr", "rst", "grst")


def values(spec: RunSpec, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The values of these keys, such as "recipe.epochs"."""
    groups, found = spec.dump(), {}
    for key in keys:
        group, _, name = key.partition(".")
        found[key] = groups[group][name]
    return found


# ------------------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize(("model", "dataset"), RECIPES)
def test_network_and_data_set_choose_the_hyperparameters_of_the_paper(model: str, dataset: str) -> None:
    expected = RECIPES[model, dataset]
    assert values(compose([f"dataset={dataset}", f"model={model}"]), expected) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=vit_s", "recipe=vit_300", "augmentation=basic"], TABLE_12),
        (["model=vit_s", "recipe=vit_300"], TABLE_12),
        (["model=vgg16_bn", "recipe=single_gpu"], TABLE_14_SINGLE_GPU),
        (["model=wrn28_10", "dataset=cifar100", "recipe=single_gpu"], TABLE_14_SINGLE_GPU),
        (["recipe=cifar", "model=pyramidnet164"], TABLE_16),
        (["model=resnet50", "dataset=imagenet", "recipe=imagenet"], TABLE_18),
    ],
    ids=" ".join,
)
def test_a_named_recipe_wins_over_the_one_that_network_and_data_set_choose(
    overrides: list[str], expected: dict[str, Any]
) -> None:
    assert values(compose(overrides), expected) == expected


# ---------------------------------------------------------------------------------------------------------- the runs


def digits_instead(model: str, dataset: str, folder: Path, size: int, batch: int) -> Sequence[str]:
    """Overrides for one epoch of ``size`` digits in the shape of the data set, or 64 pixels for ImageNet."""
    return [
        *(f"model={model}", f"dataset={dataset}", "dataset.source=digits", "device=cpu", "wandb.mode=disabled"),
        *(["dataset.image_size=64"] if dataset == "imagenet" else []),
        *(f"dataset.train_images={size}", f"dataset.test_images={size}", "recipe.epochs=1"),
        *(f"recipe.batch_size={batch}", "recipe.warmup_epochs=0", f"paths.runs={folder}"),
    ]


def assert_trained(spec: RunSpec, total_steps: int) -> None:
    """Train; the run makes the passes that its scheme and its gate ask for, and all losses are finite."""
    summary, metrics = (record := train(spec, show_progress=False)).summary, record.metrics
    gate = Gate(spec.p, total_steps, seed=spec.seed).steps
    sharp_steps = {"sgd": 0, "sam": total_steps, "gnr": total_steps}.get(spec.scheme.name, int(gate.sum()))
    assert summary["total_steps"] == total_steps
    assert summary["sharp_steps"] == sharp_steps
    assert summary["propagations"] == total_steps + sharp_steps
    losses = [metrics[-1]["train_loss"], summary["test_loss"]]
    losses += [metrics[-1]["clean_loss"], metrics[-1]["perturbed_loss"]] if sharp_steps else []
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("model", "dataset"), [*RECIPES, ("wrn10_1", "digits")])
def test_every_combination_trains_two_steps_with_its_slim_network(
    model: str, dataset: str, scheme: str, tmp_path: Path
) -> None:
    run = digits_instead(model, dataset, tmp_path, size=16, batch=8)
    # With seed 1, the gate of p = 1/2 is open at one of the two steps.
    spec = compose([*run, f"scheme={scheme}", "scale=smoke", "recipe.perturbation_batch=4", "seed=1"])
    assert_trained(spec, total_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "dataset"), [pair for pair in RECIPES if pair[1] != "cifar100"])
def test_every_network_trains_a_step_at_full_size(model: str, dataset: str, tmp_path: Path) -> None:
    run = digits_instead(model, dataset, tmp_path, size=4, batch=4)
    assert_trained(compose([*run, "scheme=sam", "recipe.perturbation_batch=4"]), total_steps=1)
    shutil.rmtree(tmp_path)  # pytest would keep the checkpoints, which have up to a gigabyte
