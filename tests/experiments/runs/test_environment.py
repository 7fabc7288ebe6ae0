"""What a record says of the code that a run was trained by: the commit, and whether it was changed since."""

import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rst.experiments.compose import compose
from rst.experiments.runs import environment


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A clean checkout of a project that stands in for this one; git in it, as a function of its words."""

    def git(*words: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for name in ("rst/environment.py", "results/records.csv", "results/tables/demo.md", "docs/results/note.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as committed")
    git("init")
    git("add", ".")
    git("commit", "--message=all")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "rst" / "environment.py"))
    return git


def commit_on_record() -> str | None:
    return environment.environment(torch.device("cpu"))["git_commit"]


def test_the_platform_is_the_system_and_the_processor_without_the_release_of_the_kernel() -> None:
    system, processor = environment.environment(torch.device("cpu"))["platform"].split(", ", 1)
    assert system == f"{platform.system()} {platform.machine()}"
    assert processor
    assert platform.release() not in processor


def test_a_clean_checkout_is_its_commit(checkout: Callable[..., str]) -> None:
    assert commit_on_record() == checkout("rev-parse", "HEAD")


def test_results_that_were_written_anew_or_deleted_do_not_make_it_dirty(
    checkout: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "results" / "records.csv").write_text("written anew")
    (tmp_path / "results" / "tables" / "demo.md").unlink()
    (tmp_path / "results" / "report.html").write_text("new")
    assert commit_on_record() == checkout("rev-parse", "HEAD")


@pytest.mark.parametrize("file", ["rst/environment.py", "docs/results/note.md"])
def test_any_other_file_that_was_changed_does(checkout: Callable[..., str], tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("changed")
    (tmp_path / "results" / "records.csv").write_text("written anew")
    assert commit_on_record() == checkout("rev-parse", "HEAD") + "-dirty"


def test_files_that_git_does_not_know_do_not(checkout: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "rst" / "notes.txt").write_text("new")
    assert commit_on_record() == checkout("rev-parse", "HEAD")


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_on_record() is None


@pytest.mark.parametrize(("load", "alone"), [(0.0, True), (2.3, True), (3.0, False), (9.0, False)])
def test_a_run_is_alone_where_no_more_processes_than_cores_ran_in_the_last_minute(
    load: float, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "available_cores", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    start = environment.environment_of(compose(["scale=digits"]), torch.device("cpu"), "digest")
    assert start["alone"] is alone


def test_a_change_in_what_else_the_machine_does_is_no_change_of_the_run() -> None:
    assert environment.changes({"threads": 1, "alone": True}, {"threads": 2, "alone": False}) == "threads 1 -> 2"
