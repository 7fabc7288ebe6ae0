"""Recipes: every network on its data set trains with the numbers of the paper, without naming them."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from torch import nn

import rst
from rst.experiments.config import load_config, schedule_of
from rst.training import train
from rst.training.loop import lr_decay

# Our copy of Tables 16, 17, 18 and 12 and of Table 14's single-GPU rows, with what the tables leave out (momentum,
# clipping, images that share a perturbation) as in the authors' code. `recipe.l2` is decay inside the loss.
TABLE_16 = {
    "recipe.epochs": 200,
    "recipe.batch_size": 256,
    "optimizer._target_": "torch.optim.SGD",
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
    "optimizer._target_": "torch.optim.AdamW",
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
    "optimizer._target_": "torch.optim.SGD",
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


def values(cfg: DictConfig, keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: OmegaConf.select(cfg, key) for key in keys}


# ------------------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize(("model", "dataset"), RECIPES)
def test_network_and_data_set_choose_the_hyperparameters_of_the_paper(model: str, dataset: str) -> None:
    expected = RECIPES[model, dataset]
    assert values(load_config([f"dataset={dataset}", f"model={model}"]), expected) == expected


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
def test_recipe_that_is_named_wins_over_the_one_that_would_follow(
    overrides: list[str], expected: dict[str, Any]
) -> None:
    assert values(load_config(overrides), expected) == expected


def test_learning_rate_is_a_cosine_per_step_to_zero_times_the_warm_up() -> None:
    assert [lr_decay(t, 4, 0) for t in range(5)] == pytest.approx(
        [1, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5), 0], abs=1e-12
    )
    assert [lr_decay(t, 4, 2) for t in range(3)] == pytest.approx([0, 0.25 + 0.25 * math.sqrt(0.5), 0.5])


# ---------------------------------------------------------------------------------------------------------- the runs


def digits_instead(model: str, dataset: str, folder: Path, size: int, batch: int) -> Sequence[str]:
    """One epoch of ``size`` digits in the shape of the data set; ImageNet's at the smallest size its networks take."""
    return [
        *(f"model={model}", f"dataset={dataset}", "dataset.source=digits", "device=cpu", "wandb.mode=disabled"),
        *(["dataset.image_size=64"] if dataset == "imagenet" else []),
        *(f"dataset.train_images={size}", f"dataset.test_images={size}", "recipe.epochs=1"),
        *(f"recipe.batch_size={batch}", "recipe.warmup_epochs=0", f"paths.runs={folder}"),
    ]


def assert_trained(cfg: DictConfig, total_steps: int) -> None:
    """Train: as many passes as the scheme and its gate say, and every loss a number."""
    summary, metrics = (record := train(cfg, show_progress=False)).summary, record.metrics
    gate = rst.RST(nn.Linear(1, 1), 0.0, schedule_of(cfg), total_steps=total_steps, seed=cfg.seed).gate
    sharp_steps = {"sgd": 0, "sam": total_steps, "gnr": total_steps}.get(cfg.scheme.name, int(gate.sum()))
    assert summary["total_steps"] == total_steps
    assert summary["sharp_steps"] == sharp_steps
    assert summary["propagations"] == total_steps + sharp_steps
    losses = [metrics[-1]["train_loss"], summary["test_loss"]]
    losses += [metrics[-1]["clean_loss"], metrics[-1]["perturbed_loss"]] if sharp_steps else []
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("model", "dataset"), [*RECIPES, ("wrn10_1", "digits")])
def test_every_combination_trains_two_steps_in_its_slim_version(
    model: str, dataset: str, scheme: str, tmp_path: Path
) -> None:
    run = digits_instead(model, dataset, tmp_path, size=16, batch=8)
    # Seed 1 opens the gate of p = 1/2 in one of the two steps.
    cfg = load_config([*run, f"scheme={scheme}", "scale=smoke", "recipe.perturbation_batch=4", "seed=1"])
    assert_trained(cfg, total_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "dataset"), [pair for pair in RECIPES if pair[1] != "cifar100"])
def test_every_network_trains_a_step_in_its_full_size(model: str, dataset: str, tmp_path: Path) -> None:
    run = digits_instead(model, dataset, tmp_path, size=4, batch=4)
    assert_trained(load_config([*run, "scheme=sam", "recipe.perturbation_batch=4"]), total_steps=1)
    shutil.rmtree(tmp_path)  # pytest would keep it, and the checkpoints are of up to a gigabyte
