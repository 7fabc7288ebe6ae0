"""The record of a run: one folder, named by the run's id.

results/runs/<id>/
    config.yaml        the spec of the run
    starts.jsonl       one object for each start: commit, versions, device, precision, digest of the images
    metrics.jsonl      one object for each epoch, appended
    checkpoint.pt      where to go on; checkpoint.previous.pt is the one before, for the case that this is damaged
    diverged.json      the step by which the loss was no longer finite: an outcome, after which nothing is trained
    failure.txt        why the last attempt of a sweep failed; removed when the run starts again
    summary.json       the results; it is written last, by a rename, and its presence means that the run is done
"""

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from rst.experiments.compose import validated
from rst.experiments.errors import InputError
from rst.experiments.files import LOCK_ERRORS, lacks_locks, write_atomically, writing
from rst.experiments.runs.identity import run_id
from rst.experiments.spec import RunSpec

STATUSES = ("done", "diverged", "half done", "running", "failed", "missing")
"""What `Record.status` may say. "diverged": the run ended because its loss was not finite. "half done": there is a
checkpoint to go on from. "running": some process is training it. "failed": the last attempt ended in an error."""

ENDED = ("done", "diverged")
"""The statuses of a run that has its outcome, and is not trained any more."""

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
"""Every summary has these keys; a data set or a split may add others."""

SPLIT_KEYS = ("top5_error", "train_error", "validation_error")
"""Errors that a summary may have besides that on the test images: the top-5 error (from 100 classes on), the error on
the training images of the last epoch, and that on images held out of training (where there are some)."""

SHARPNESS_KEYS = ("gradient_norm", "sharpness", "lambda_max")
"""The summary of a run with ``measure_sharpness`` has these keys too: what `rst.sharpness` measures, or null."""


class Locked(InputError):
    """Another process trains the run."""


class Diverged(InputError):
    """The loss of the run is no longer finite."""


class Record:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint.pt"
        self._config = folder / "config.yaml"
        self._starts = folder / "starts.jsonl"
        self._metrics = folder / "metrics.jsonl"
        self._summary = folder / "summary.json"
        self._divergence = folder / "diverged.json"
        self._failure = folder / "failure.txt"
        self._lock = folder / ".lock"

    # ----------------------------------------------------------------------------------------------- what it says

    @property
    def id(self) -> str:
        """The run id, which is the folder's name."""
        return self.folder.name

    @property
    def done(self) -> bool:
        """Whether the run has ended and its summary is written."""
        return self._has(self._summary)

    @property
    def diverged(self) -> bool:
        """Whether the run has ended because its loss was no longer finite."""
        return self._has(self._divergence)

    @property
    def divergence(self) -> str:
        """The sentence that says when the run diverged, and what to try."""
        with self._readable(self._divergence):
            return str(_mapping(json.loads(self._divergence.read_text()), "sentence")["sentence"])

    @property
    def status(self) -> str:
        """One of `STATUSES`. Asking changes nothing."""
        if self.done:
            return "done"
        if self.diverged:
            return "diverged"
        if self._locked():
            return "running"
        if self._has(self._failure):
            return "failed"
        return "half done" if self._has(self.checkpoint) else "missing"

    def _has(self, file: Path) -> bool:
        try:
            return file.exists()
        except PermissionError as error:
            raise self._unreadable(self.folder, error) from error

    def _locked(self) -> bool:
        if self._has(self._lock):
            try:
                with FileLock(self._lock, timeout=0):
                    pass
            except Timeout:
                return True
            except LOCK_ERRORS:  # Who cannot lock the file cannot tell; `training` says why.
                return False
        return False

    @property
    def spec(self) -> RunSpec:
        """The spec that the run was started with."""
        with self._readable(self._config):
            return validated(_mapping(yaml.safe_load(self._config.read_text(encoding="utf-8"))))

    @property
    def starts(self) -> list[dict[str, Any]]:
        """What the run ran on, one dictionary for each of its starts, the latest last, without a line cut off."""
        with self._readable(self._starts):
            return [_mapping(json.loads(line), "device") for line in _whole_lines(self._starts)]

    @property
    def environment(self) -> dict[str, Any]:
        """What the run ran on at its latest start: see `rst.experiments.runs.environment`."""
        starts = self.starts
        if not starts:
            raise self._damaged(self._starts)
        return starts[-1]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary for each epoch. A line that is being written right now is left out."""
        with self._readable(self._metrics):
            return [_mapping(json.loads(line), "propagations") for line in _whole_lines(self._metrics)]

    @property
    def summary(self) -> dict[str, Any]:
        """The results of a run that is done.

        Raises:
            InputError: the file is damaged, or an older version of this project wrote it.
        """
        with self._readable(self._summary):
            summary: dict[str, Any] = _mapping(json.loads(self._summary.read_text()))
        for key in SUMMARY_KEYS:
            if key not in summary:
                raise InputError(
                    f"{self._summary} is of an older version, without {key}: delete the folder to train the run again."
                )
        return summary

    @property
    def propagations(self) -> float:
        """The work so far, in passes over a batch, at the latest epoch on record; 0 where that cannot be read."""
        try:
            return self.metrics[-1]["propagations"]
        except (InputError, IndexError):
            return 0.0

    @contextmanager
    def _readable(self, file: Path) -> Iterator[None]:
        """Turn the errors of a file that is missing or damaged into an `InputError`."""
        try:
            yield
        except PermissionError as error:
            raise self._unreadable(file, error) from error
        except (InputError, OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
            raise self._damaged(file) from error

    @staticmethod
    def _unreadable(path: Path, error: OSError) -> InputError:
        return InputError(f"{path} cannot be read ({error.strerror}): ask its owner, or write paths.runs=<folder>.")

    def _damaged(self, file: Path) -> InputError:
        return InputError(f"{file} is damaged: delete the folder to train the run again.")

    def refuse_other_images(self, digest: str) -> None:
        """Raise `InputError` where the run was not trained on the images that have this digest."""
        for before in self.starts[-1:]:
            if before.get("data_digest") != digest:
                raise InputError(
                    f"the images have digest {digest[:12]}, but {self.id} was begun on images with digest "
                    f"{str(before.get('data_digest'))[:12]}: give those, or write force=true to start anew."
                )

    # ------------------------------------------------------------------------------------------ what is written to it

    @contextmanager
    def training(self, spec: RunSpec) -> Iterator[None]:
        """Hold the record open for this process alone. The folder and its config are made where they are missing.

        Raises:
            Locked: another process holds the record open.
            InputError: the folder cannot be written, or its file system has no locks.
        """
        lock = FileLock(self._lock, timeout=0.2)  # Who asks for the status holds the lock, for a shorter time.
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise self._in_use() from error
        except LOCK_ERRORS as error:
            if lacks_locks(error):
                reason, other = "is on a file system without locks", "folder on another file system"
            else:
                reason, other = f"cannot be written ({getattr(error, 'strerror', error)})", "folder"
            raise InputError(f"paths.runs={self.folder.parent} {reason}: write paths.runs=<{other}>.") from error
        try:
            for unfinished in self.folder.glob(".*.[0-9]*"):  # A process was killed while it wrote these.
                unfinished.unlink()
            if not self._config.exists():
                write_atomically(self._config, yaml.safe_dump(spec.dump(), sort_keys=False, allow_unicode=True))
            self._failure.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def _in_use(self, fix: str = "") -> Locked:
        return Locked(f"run {self.id} is being trained by another process{fix}.")

    def set_aside(self) -> Path | None:
        """Rename the folder to ``<id>.old-<n>``, so that the run can be trained anew; its new name, if there is one.

        Raises:
            Locked: another process trains the run.
        """
        if not self.folder.exists():
            return None
        if self._locked():
            raise self._in_use()
        others = (self.folder.with_name(f"{self.id}.old-{n}") for n in itertools.count(1))
        free = next(folder for folder in others if not folder.exists())
        with writing(self.folder):
            os.rename(self.folder, free)
        return free

    def remove(self) -> None:
        """Delete the folder. It is renamed first, so that no half of it is ever taken for a record.

        Raises:
            Locked: a process trains the run.
        """
        if self._locked():
            raise self._in_use(": stop that first")
        with writing(self.folder):
            going = self.folder.with_name(f".removed-{self.id}")
            shutil.rmtree(going, ignore_errors=True)  # of a removal that was killed
            os.rename(self.folder, going)
            shutil.rmtree(going)

    def append_start(self, environment: dict[str, Any]) -> None:
        """Add what the run runs on from now on."""
        with self._readable(self._starts):
            lines = _whole_lines(self._starts)
        write_atomically(self._starts, "".join([*lines, json.dumps(environment) + "\n"]))

    def append(self, metrics: dict[str, Any]) -> None:
        """Add the metrics of an epoch, and wait until they are on the disk."""
        with writing(self._metrics), self._metrics.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_epochs(self, epochs: int) -> None:
        """Drop the metrics of the epochs that a resumed run trains again."""
        with self._readable(self._metrics):
            lines = _lines(self._metrics)
        write_atomically(self._metrics, "".join(lines[:epochs]))

    def fail(self, message: str) -> None:
        """Keep why the run failed, until it starts again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._failure, message + "\n")

    def diverge(self, step: int, sentence: str) -> None:
        """Write that the loss was no longer finite after this step; from then on the run is not trained any more."""
        write_atomically(self._divergence, json.dumps({"step": step, "sentence": sentence}, indent=2))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the results; from then on the run is done."""
        write_atomically(self._summary, json.dumps(summary, indent=2))


def open_record(spec: RunSpec) -> Record:
    """The record of a run, whether or not its folder exists yet."""
    return Record(Path(spec.paths.runs) / run_id(spec))


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines(keepends=True) if file.exists() else []


def _whole_lines(file: Path) -> list[str]:
    return [line for line in _lines(file) if line.endswith("\n")]


def _mapping(value: Any, *keys: str) -> dict[str, Any]:
    """The value, which must be a dictionary with these keys."""
    if not isinstance(value, dict) or not value.keys() >= set(keys):
        raise ValueError(f"not a mapping with {', '.join(keys)}")
    return value
