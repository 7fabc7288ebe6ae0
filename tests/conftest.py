"""Small real runs: configs on the embedded digits whose records are in a folder of the test."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from rst.experiments.config import load_config


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """The command line of a run of 2 epochs of 3 steps, each of 2 perturbations: about a third of a second."""
    small = {"train_images": 100, "test_images": 40}
    recipe = {"epochs": 2, "batch_size": 32, "perturbation_batch": 16}
    return [
        *("dataset=digits", "model=wrn10_1", "device=cpu", "wandb.mode=disabled"),
        *(f"dataset.{key}={value}" for key, value in small.items()),
        *(f"recipe.{key}={value}" for key, value in recipe.items()),
        *(f"paths.{key}={tmp_path / key}" for key in ("data", "cache", "runs")),
    ]


@pytest.fixture
def config(overrides: list[str]) -> Callable[..., DictConfig]:
    """The config of `overrides`, and of more of them, which win."""
    return lambda *more: load_config([*overrides, *more])
