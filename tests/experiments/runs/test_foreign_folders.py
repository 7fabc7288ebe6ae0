"""Folders of other users, and file systems without locks: one sentence each."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from rst.experiments.data.cache import scratch_folder
from rst.experiments.errors import InputError
from rst.experiments.runs.record import Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.training import train

Config = Callable[..., RunSpec]


@pytest.fixture
def record(config: Config) -> Record:
    """A record that holds a config and a lock, but no results."""
    spec = config()
    record = open_record(spec)
    with record.training(spec):
        pass
    return record


def forbid(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, folder: Path) -> None:
    """Let a function refuse paths in the folder, as permissions do, which do not bind root."""
    original = getattr(owner, name)

    def refusing(path: object, *arguments: object, **options: object) -> object:
        if Path(str(path)).is_relative_to(folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(owner, name, refusing)


@pytest.mark.parametrize("question", ["done", "diverged", "status"])
def test_a_record_that_may_not_be_entered_is_named_with_what_to_do(
    record: Record, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, Path, "stat", record.folder)
    monkeypatch.setattr(Path, "exists", lambda path: bool(path.stat()))  # As in all versions of Python up to 3.13.
    with pytest.raises(InputError) as refusal:
        getattr(record, question)
    assert str(refusal.value) == (
        f"{record.folder} cannot be read (Permission denied): ask its owner, or write paths.runs=<folder>."
    )


@pytest.mark.parametrize(
    ("file", "attribute"),
    [("config.yaml", "spec"), ("starts.jsonl", "starts"), ("metrics.jsonl", "metrics"), ("summary.json", "summary")],
)
def test_a_file_of_a_record_that_may_not_be_read_is_not_called_damaged(
    record: Record, file: str, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (record.folder / file).touch()
    forbid(monkeypatch, Path, "read_text", record.folder)
    with pytest.raises(InputError, match=rf"{file} cannot be read \(Permission denied\): ask its owner, or write"):
        getattr(record, attribute)


def test_a_run_in_a_folder_of_another_user_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = config()
    forbid(monkeypatch, os, "mkdir", Path(spec.paths.runs))
    with pytest.raises(InputError, match=r"^paths\.runs=.* cannot be written \(Permission denied\): write paths"):
        train(spec, show_progress=False)


# ---------------------------------------------------------------------------------------- file systems without locks

NO_LOCKS = [
    NotImplementedError("FileSystem does not appear to support flock"),
    *(OSError(code, os.strerror(code)) for code in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)),
]


@pytest.fixture(params=NO_LOCKS, ids=repr)
def _no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*arguments: object, **options: object) -> None:
        raise request.param

    monkeypatch.setattr(FileLock, "acquire", acquire)


@pytest.mark.usefixtures("_no_locks")
def test_a_run_on_a_file_system_without_locks_is_refused_with_what_to_do(config: Config) -> None:
    spec = config()
    with pytest.raises(InputError) as refusal:
        train(spec, show_progress=False)
    assert str(refusal.value) == (
        f"paths.runs={spec.paths.runs} is on a file system without locks: "
        "write paths.runs=<folder on another file system>."
    )


@pytest.mark.usefixtures("_no_locks")
def test_a_record_on_a_file_system_without_locks_is_not_running(config: Config) -> None:
    record = open_record(config())
    record.folder.mkdir(parents=True)
    (record.folder / ".lock").touch()
    assert record.status == "missing"


@pytest.mark.usefixtures("_no_locks")
def test_a_cache_on_a_file_system_without_locks_is_refused_with_what_to_do(tmp_path: Path) -> None:
    sentence = (
        rf"^The cache {tmp_path} is on a file system without locks: write paths\.cache=<folder on another file sys"
    )
    with pytest.raises(ValueError, match=sentence), scratch_folder(tmp_path):
        pass
