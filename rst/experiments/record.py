"""The run record: one folder a run, named by what determines its result.

results/runs/<id>/
    config.yaml        resolved
    environment.json   versions, commit, device, digest of the data
    metrics.jsonl      append-only, one object an epoch
    checkpoint.pt      where to continue; checkpoint.previous.pt is the one before, for where this is damaged
    failure.txt        why the last attempt of a sweep failed; gone when the run starts again
    summary.json       written last, by rename: its presence means done
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rst.experiments.config import InputError
from rst.experiments.identity import run_id

STATUSES = ("done", "half done", "running", "failed", "missing")
"""What `Record.status` may say: "half done" has a checkpoint to go on from, "running" is some process's own right now,
and the last attempt at "failed" ended in an error."""

SUMMARY_KEYS = (
    "test_error",
    "best_test_error",
    "train_seconds",
    "total_steps",
    "sharp_steps",
    "propagations",
    "extra_propagations_expected",
    "extra_propagations_realised",
    "images_per_second",
    "peak_memory_bytes",
    "epochs",
    "seed",
)
"""Every summary has these; a data set or a split may add others."""


class Locked(InputError):
    """Another process trains the run."""


class Record:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint.pt"
        self._metrics = folder / "metrics.jsonl"
        self._summary = folder / "summary.json"
        self._failure = folder / "failure.txt"
        self._lock = folder / ".lock"

    @property
    def id(self) -> str:
        """The run id, which is the folder's name."""
        return self.folder.name

    @property
    def done(self) -> bool:
        """Whether the run has ended and its summary is written."""
        return self._summary.exists()

    @property
    def summary(self) -> dict[str, Any]:
        """The results of a run that is done; an `InputError` where an older version wrote them, or they are damaged."""
        with self._readable(self._summary):
            summary: dict[str, Any] = _mapping(json.loads(self._summary.read_text()))
        for key in SUMMARY_KEYS:
            if key not in summary:
                raise InputError(
                    f"{self._summary} is of an older version, without {key}: delete the folder to train the run again."
                )
        return summary

    @property
    def status(self) -> str:
        """One of `STATUSES`; nothing is made or changed by asking."""
        if self.done:
            return "done"
        if self._locked():
            return "running"
        if self._failure.exists():
            return "failed"
        return "half done" if self.checkpoint.exists() else "missing"

    def _locked(self) -> bool:
        if self._lock.exists():
            try:
                with FileLock(self._lock, timeout=0):
                    pass
            except Timeout:
                return True
        return False

    @property
    def config(self) -> DictConfig:
        """The resolved config that the run was started with."""
        file = self.folder / "config.yaml"
        with self._readable(file):
            config = OmegaConf.load(file)
            _mapping(OmegaConf.to_container(config), "network", "model", "dataset", "recipe", "scale")
        return config  # type: ignore[return-value]

    @property
    def environment(self) -> dict[str, Any]:
        """What the run ran on, at its latest start: see `environment`."""
        file = self.folder / "environment.json"
        with self._readable(file):
            return _mapping(json.loads(file.read_text()), "device")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary an epoch; of a line that is being written, nothing yet."""
        with self._readable(self._metrics):
            return [_mapping(json.loads(line), "propagations") for line in self._lines() if line.endswith("\n")]

    def _lines(self) -> list[str]:
        return self._metrics.read_text().splitlines(keepends=True) if self._metrics.exists() else []

    @contextmanager
    def _readable(self, file: Path) -> Iterator[None]:
        """Errors of a file that is damaged, or is none, become an `InputError`."""
        try:
            yield
        except (OSError, ValueError, LookupError, TypeError, YAMLError, OmegaConfBaseException) as error:
            raise InputError(f"{file} is damaged: delete the folder to train the run again.") from error

    @property
    def propagations(self) -> float:
        """Work so far, in passes, as of the latest epoch that is recorded; 0 where that cannot be read."""
        try:
            return self.metrics[-1]["propagations"]
        except (InputError, IndexError):
            return 0.0

    @contextmanager
    def training(self, cfg: DictConfig) -> Iterator[None]:
        """The record open for one process alone, its folder and config made where they are missing.

        Raises `Locked` where another process has it open.
        """
        lock = FileLock(self._lock, timeout=0.2)  # which outlasts another's look at the status
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise Locked(f"run {self.id} is being trained by another process.") from error
        except OSError as error:
            raise InputError(
                f"paths.runs={self.folder.parent} cannot be written ({error.strerror}): write paths.runs=<folder>."
            ) from error
        try:
            for left in self.folder.glob(".*.[0-9]*"):  # by a process that was killed while it wrote
                left.unlink()
            config = self.folder / "config.yaml"
            if not config.exists():
                write_atomically(config, OmegaConf.to_yaml(cfg))
            self._failure.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def write_environment(self, device: torch.device, data_digest: str) -> None:
        """What the run ran on; of its latest start."""
        write_atomically(self.folder / "environment.json", json.dumps(environment(device, data_digest), indent=2))

    def append(self, metrics: dict[str, Any]) -> None:
        """Add an epoch's metrics."""
        with _writing(self._metrics), self._metrics.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_epochs(self, epochs: int) -> None:
        """Drop the metrics of epochs that a resumed run will train again."""
        with self._readable(self._metrics):
            lines = self._lines()
        write_atomically(self._metrics, "".join(lines[:epochs]))

    def fail(self, message: str) -> None:
        """Keep why the run failed, until it starts again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._failure, message + "\n")

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the results; from then on the run is done."""
        write_atomically(self._summary, json.dumps(summary, indent=2))


def open_record(cfg: DictConfig) -> Record:
    """The record of the run that this config describes, whether or not it exists yet."""
    return Record(Path(cfg.paths.runs) / run_id(cfg))


def _mapping(value: Any, *keys: str) -> dict[str, Any]:
    """The value, which must be a dictionary with these keys."""
    if not isinstance(value, dict) or not value.keys() >= set(keys):
        raise ValueError(f"not a mapping with {', '.join(keys)}")
    return value


def write_atomically(path: Path, content: str | bytes) -> None:
    """The whole content or, after a crash, what was there before; never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full disk, a folder that may not be written and the like become an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder last, also after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def environment(device: torch.device, data_digest: str) -> dict[str, Any]:
    """Versions, commit, device and data: what a reader needs to judge whether two records compare."""
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "timm", "rst-training")},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "data_digest": data_digest,
    }


def _git_commit() -> str | None:
    """The commit of this code, marked where files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
