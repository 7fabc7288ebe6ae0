"""Files that are whole at every instant."""

import os
import resource
import signal
from pathlib import Path

import pytest

from rst.experiments.errors import InputError
from rst.experiments.files import write_atomically


def test_what_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    """As on a full disk: this process may write no file of more than 1,000 bytes."""
    path = tmp_path / "summary.json"
    write_atomically(path, "old")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"summary.json cannot be written: File too large\."):
            write_atomically(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
    write_atomically(path, "new" * 1000)
    assert path.read_text() == "new" * 1000


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_process_that_is_stopped_while_it_writes_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, "old")

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, stopped)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_text_is_written_as_utf_8_and_bytes_as_they_are(tmp_path: Path) -> None:
    write_atomically(tmp_path / "text", "Δη = ½\n")
    write_atomically(tmp_path / "bytes", b"\x00\xff\r\n")
    assert (tmp_path / "text").read_bytes() == "Δη = ½\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff\r\n"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "summary.json"
    with pytest.raises(InputError, match=rf"^{path} cannot be written: No such file or directory\.$"):
        write_atomically(path, "new")
