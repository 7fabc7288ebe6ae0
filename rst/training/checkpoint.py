"""Checkpoints: all that a run needs to continue as if it had never stopped."""

import io
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rst.experiments.config import InputError
from rst.experiments.record import Record, sync_folder, write_atomically


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the state to ``checkpoint.pt``, and keep the one before as ``checkpoint.previous.pt``.

    At every instant a whole one is there, of this state or of the one before, under a name that `newest` tries.
    """
    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(names(path)[0], content.getvalue())
    _put_in_place(path)


def _put_in_place(path: Path) -> None:
    """Give the new checkpoint its name, and the one before that of the previous one."""
    new, _, previous = names(path)
    if path.exists():
        os.replace(path, previous)
    os.replace(new, path)
    sync_folder(path.parent)


def newest(path: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, None where it has none yet; warns of those that are damaged.

    Raises `InputError` where all are.
    """
    damaged: list[str] = []
    for file in filter(Path.exists, names(path)):
        try:
            state = load(file)
        except InputError as error:
            damaged.append(str(error))
            continue
        if damaged:
            warnings.warn(f"{' '.join(damaged)} The run goes on from {file.name}.", stacklevel=2)
        if file == names(path)[0]:  # `save` was killed before it got its name, and there may be no step left to save
            _put_in_place(path)
        return state
    if damaged:
        raise InputError(f"{' '.join(damaged)} There is no other, so that the run then starts from the beginning.")
    return None


def of_run(record: Record, devices: int) -> dict[str, Any] | None:
    """The `newest` checkpoint of a run; `InputError` where it is of another one or of another number of devices."""
    path, state = record.checkpoint, newest(record.checkpoint)
    if state is None:
        return None
    if state["id"] != record.id:
        raise InputError(f"{path} belongs to another run, {state['id']}: put it back there, or delete it.")
    if "ranks" not in state:
        raise InputError(f"{path} is of an earlier version of this project: finish it there, or delete it.")
    saved = len(state["ranks"])
    if saved != devices:
        raise InputError(
            f"{path} is of devices={saved}, each with a state of its own, not of devices={devices}: "
            f"write devices={saved}, or delete it to start from the beginning."
        )
    return state


def names(path: Path) -> tuple[Path, Path, Path]:
    """Where checkpoints of a run may be, the newest first; the first only between two renames."""
    return path.with_name("checkpoint.new.pt"), path, path.with_name("checkpoint.previous.pt")


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running any code in it. Raises `InputError` where the file is not one, to the bit."""
    try:
        # torch does not look at the checksums that its files have.
        with zipfile.ZipFile(path) as file:
            whole = file.testzip() is None
        state = torch.load(path, map_location=device, weights_only=True) if whole else None
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}.") from error
    except Exception as error:  # damage shows as an error of zipfile, pickle, torch or the file system
        raise InputError(f"{path} is not a checkpoint of this project, or is damaged: delete it.") from error
    if not whole:
        raise InputError(f"{path} is damaged: delete it.")
    if not (isinstance(state, dict) and {"id", "config", "model"} <= state.keys()):
        raise InputError(f"{path} is not a checkpoint of this project.")
    return state


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Errors inside, where the parts of a run take over what a checkpoint has, become an `InputError`."""
    try:
        yield
    except Exception as error:  # torch's own checks, and none where it expects no other type
        raise InputError(f"{path} does not fit the run, or is damaged: delete it.") from error
