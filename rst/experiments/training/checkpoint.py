"""Checkpoint files: written whole, read without running code, and the one before kept."""

import io
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from rst.experiments.errors import InputError
from rst.experiments.files import sync_folder, write_atomically
from rst.experiments.runs.record import Record

FIX = "name another one, or where it is that of a run delete it to start anew"
"""What to do about a file that is no checkpoint, whoever wrote it."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write ``checkpoint.pt``, and keep the one before as ``checkpoint.previous.pt``.

    At every instant a whole checkpoint, of this content or of the one before, stands under a name that `newest` tries.
    """
    write_atomically(names(path)[0], _bytes(content))
    _put_in_place(path)


def _bytes(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def cut(path: Path, keep_network: bool) -> None:
    """Drop of a run that is done what only training needs: all but the newest network, or that one as well.

    Where that fails, as on a disk that is full, the files stay as they are: the run is done all the same.
    """
    with suppress(InputError, OSError):
        if keep_network:
            content = load(path)
            write_atomically(path, _bytes({key: content[key] for key in ("id", "config", "model")}))
        else:
            path.unlink(missing_ok=True)
        for leftover in _leftovers(path):
            leftover.unlink(missing_ok=True)


def is_uncut(path: Path) -> bool:
    """Whether a kill has stopped `cut` on its way."""
    return bool(_leftovers(path))


def _leftovers(path: Path) -> list[Path]:
    return [*path.parent.glob(f".{path.name}.[0-9]*"), *(file for file in names(path)[2:] if file.exists())]


def _put_in_place(path: Path) -> None:
    """Rename the new checkpoint to its own name, and the one before to that of the previous one."""
    new, _, previous = names(path)
    if path.exists():
        os.replace(path, previous)
    os.replace(new, path)
    sync_folder(path.parent)


def newest(path: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, or None where it has none yet. Damaged ones are named in a warning.

    Raises:
        InputError: all checkpoints are damaged.
    """
    damaged: list[str] = []
    for file in filter(Path.exists, names(path)):
        try:
            content = load(file)
        except InputError as error:
            damaged.append(str(error))
            continue
        if damaged:
            warnings.warn(f"{' '.join(damaged)} The run goes on from {file.name}.", stacklevel=2)
        if file == names(path)[0]:
            # A kill came between the two renames of `save`; there may be no step left after which it is called again.
            _put_in_place(path)
        return content
    if damaged:
        raise InputError(f"{' '.join(damaged)} There is no other, so that the run then starts from the beginning.")
    return None


def of_run(record: Record, devices: int) -> dict[str, Any] | None:
    """The `newest` checkpoint of a run on so many devices, or None where it has none yet.

    Raises:
        InputError: the checkpoint is damaged, or belongs to another run or to another number of devices.
    """
    path, content = record.checkpoint, newest(record.checkpoint)
    if content is None:
        return None
    if content["id"] != record.id:
        raise InputError(f"{path} belongs to another run, {content['id']}: put it back there, or delete it.")
    if "ranks" not in content:
        raise InputError(f"{path} has a network alone, not the state of its training: delete it to start anew.")
    with fitting(path):
        saved = len(content["ranks"])
    if saved != devices:
        raise InputError(
            f"{path} is of devices={saved}, each with a state of its own, not of devices={devices}: "
            f"write devices={saved}, or delete it to start from the beginning."
        )
    return content


def names(path: Path) -> tuple[Path, Path, Path]:
    """Where checkpoints of a run may be, the newest first. The first name exists only between two renames."""
    return path.with_name("checkpoint.new.pt"), path, path.with_name("checkpoint.previous.pt")


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint, without running any code in it.

    Raises:
        InputError: there is no such file, or it is not a checkpoint of this project to the bit.
    """
    try:
        # torch does not compare the checksums that its files have.
        with zipfile.ZipFile(path) as file:
            whole = file.testzip() is None
        content = torch.load(path, map_location=device, weights_only=True) if whole else None
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}.") from error
    except Exception as error:  # Damage shows as an error of zipfile, pickle, torch or the file system.
        raise InputError(f"{path} is not a checkpoint of this project, or is damaged: {FIX}.") from error
    if not whole:
        raise InputError(f"{path} is damaged: {FIX}.")
    if not (isinstance(content, dict) and {"id", "config", "model"} <= content.keys()):
        raise InputError(f"{path} is not a checkpoint of this project.")
    return content


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn the errors of the body, in which a run takes over what a checkpoint holds, into an `InputError`."""
    try:
        yield
    except Exception as error:  # torch's own checks raise, and so does any value of a type that is not expected.
        raise InputError(f"{path} does not fit the run, or is damaged: {FIX}.") from error
