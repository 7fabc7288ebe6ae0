"""The cache of decoded data sets: one file for each, which is whole at every instant."""

import io
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from rst.experiments.data.splits import Dataset, Split
from rst.experiments.files import LOCK_ERRORS, lacks_locks


@contextmanager
def scratch_folder(cache: Path) -> Iterator[tuple[Path, bool]]:
    """Lock the cache and make a temporary folder inside it, for files that are moved into the cache when complete.

    Yields the folder, and whether this process had to wait for the lock: then another process may have filled the cache
    meanwhile. A process that waits says so on stderr.

    Raises:
        ValueError: the cache cannot be written, or its file system has no locks.
    """
    lock, waited = FileLock(cache / ".lock"), False
    try:
        cache.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            waited = True
            print(f"Another process fills the cache {cache}: waiting for it.", file=sys.stderr)
            lock.acquire()
        for leftover in cache.glob(".tmp-*"):  # of a process that was killed
            shutil.rmtree(leftover)
        scratch = tempfile.TemporaryDirectory(dir=cache, prefix=".tmp-")
    except LOCK_ERRORS as error:
        lock.release()
        raise unwritable(cache, error) from error
    try:
        with scratch as path:
            yield Path(path), waited
    finally:
        lock.release()


def read_cache(file: Path, digest: str) -> Dataset | None:
    """The data set in a file of the cache. None if there is no file, or, with a warning, if its digest is another."""
    if not file.exists():
        return None
    try:
        content = torch.load(file, weights_only=True)
        dataset = Dataset(Split(*content["train"]), Split(*content["test"]))
        if dataset.digest == digest:
            return dataset
    except Exception:  # A damaged file raises errors of pickle, zipfile, torch or the file system.
        pass
    warnings.warn(f"{file} is damaged: building it again.", stacklevel=2)
    return None


def write_cache(file: Path, dataset: Dataset, scratch: Path) -> None:
    """Write a data set to ``scratch`` and move it to ``file``, which is never incomplete, also after a power cut.

    Raises:
        ValueError: the cache cannot be written.
    """
    train, test = dataset.train, dataset.test
    # Written to a file, torch.save would replace the error of a full disk by one of its own.
    content = io.BytesIO()
    torch.save({"train": (train.images, train.labels), "test": (test.images, test.labels)}, content)
    try:
        with open(scratch / file.name, "wb") as handle:
            handle.write(content.getbuffer())
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(scratch / file.name, file)
    except OSError as error:
        raise unwritable(file.parent, error) from error


def unwritable(cache: Path, error: Exception) -> ValueError:
    """The error to raise where the cache is on a full or a read-only disk, or on a file system without locks."""
    if lacks_locks(error):
        return ValueError(
            f"The cache {cache} is on a file system without locks: write paths.cache=<folder on another file system>."
        )
    reason = getattr(error, "strerror", None) or error
    return ValueError(f"The cache {cache} cannot be written ({reason}): write paths.cache=<folder>.")
