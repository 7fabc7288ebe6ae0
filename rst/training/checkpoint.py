"""Checkpoints: all that a run needs to continue as if it had never stopped."""

import io
from pathlib import Path
from typing import Any

import torch

from rst.experiments.config import InputError
from rst.experiments.record import write_atomically


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the state, whole or not at all."""
    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(path, content.getvalue())


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running any code in it. Raises `InputError` where the file is not one."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}.") from error
    except Exception as error:  # damage shows as an error of zipfile, pickle, torch or the file system
        raise InputError(f"{path} is not a checkpoint of this project, or is damaged: delete it.") from error
    if not (isinstance(state, dict) and {"id", "config", "model"} <= state.keys()):
        raise InputError(f"{path} is not a checkpoint of this project.")
    return state
