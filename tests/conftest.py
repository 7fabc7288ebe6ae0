"""Small real runs: configs on the embedded digits whose records are in a folder of the test."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from omegaconf import DictConfig

from rst.experiments.config import load_config

ROOT = Path(__file__).parents[1]
PROCESSES = multiprocessing.get_context("forkserver")
# Imported once, for all processes of a session of tests.
PROCESSES.set_forkserver_preload(["rst.training", "rst.models", "sklearn.datasets"])


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


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., tuple[BaseProcess, Path]]:
    """Start ``python train.py *overrides`` in a process of its own; the process, and the file of what it prints."""

    def start(*overrides: str) -> tuple[BaseProcess, Path]:
        output = tmp_path / "output.txt"
        process = PROCESSES.Process(target=train_py, args=(overrides, output))
        process.start()
        return process, output

    return start


def train_py(overrides: list[str], output: Path) -> None:
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["train.py", *overrides]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
