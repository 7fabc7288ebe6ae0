"""Scores of a saved network: what ``evaluate=`` asks for."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rst.experiments.config import InputError, check, one_sentence, refuse_foreign_code, torch_device
from rst.training import checkpoint
from rst.training.data import RunData
from rst.training.evaluation import evaluate
from rst.training.loop import autocast, build_model

HERE = ("evaluate", "device", "dataset.root", "paths", "wandb")
"""Keys that say where to score, not what."""


def score(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, float]:
    """The test scores of ``cfg.evaluate``: a run id, its folder, or a checkpoint file.

    Network and data are those of the checkpoint. Raises `InputError` where the overrides of the command line ask
    for others.
    """
    path = _checkpoint_file(cfg)
    device = torch_device(cfg)
    state = checkpoint.load(path)
    saved = _saved_config(path, state["config"], cfg)
    for key in (override.split("=")[0].lstrip("+~") for override in overrides):
        if key.startswith(HERE):
            continue
        if OmegaConf.select(cfg, key) != OmegaConf.select(saved, key):
            raise InputError(f"{path} is of another config: leave {key} out of the command, or evaluate another run.")
    data = RunData(saved, device)
    model = build_model(saved, device)
    with checkpoint.fitting(path):
        model.load_state_dict(state["model"])
    with autocast(saved, device):
        return evaluate(model, data.batches("test"), saved.dataset.num_classes)


def _saved_config(path: Path, text: Any, cfg: DictConfig) -> DictConfig:
    """The config that the checkpoint holds, checked."""
    try:
        saved = OmegaConf.create(text)
        saved.paths, saved.dataset.root, saved.device = cfg.paths, cfg.dataset.root, cfg.device
        refuse_foreign_code(saved)
        check(saved)
    except Exception as error:  # a text of whatever content
        raise InputError(f"{path} has a config that is not one of this project's: {one_sentence(error)}") from error
    return saved


def _checkpoint_file(cfg: DictConfig) -> Path:
    given = Path(cfg.evaluate)
    for path in (given, given / "checkpoint.pt", Path(cfg.paths.runs) / given / "checkpoint.pt"):
        with suppress(OSError, ValueError):  # a text that can be no path
            if path.is_file():
                return path
    raise InputError(
        f"evaluate={cfg.evaluate} is neither a checkpoint, nor the folder of a run, nor a run id in {cfg.paths.runs}."
    )
