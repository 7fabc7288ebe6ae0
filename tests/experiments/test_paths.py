"""Which folders a command means, wherever it is given."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from rst.experiments.compose import compose

DEFAULTS = {"data": "data", "cache": "data/cache", "runs": "results/runs"}


@pytest.fixture(autouse=True)
def _no_folder_of_images_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RST_DATA", raising=False)


def test_from_the_projects_folder_the_default_paths_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert compose([]).paths.model_dump() == DEFAULTS


def test_from_elsewhere_the_default_paths_are_in_the_projects_folder_and_none_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for key, path in compose([]).paths.model_dump().items():
        assert not os.path.isabs(path)
        assert Path(path).resolve() == ROOT / DEFAULTS[key]


def test_a_path_that_the_command_gives_is_seen_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose(["paths.runs=my/runs"]).paths.runs == "my/runs"


def test_a_folder_of_images_in_the_environment_wins_over_the_projects_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RST_DATA", "/images")
    spec = compose([])
    assert (spec.paths.data, spec.dataset.root) == ("/images", "/images")


@pytest.mark.parametrize("key", ["paths.data", "paths.cache", "paths.runs", "dataset.root"])
def test_a_tilde_is_the_home_folder(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    group, name = key.split(".")
    assert getattr(getattr(compose([f"{key}='~/some/folder'"]), group), name) == "/home/someone/some/folder"


def test_a_tilde_in_the_environment_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("RST_DATA", "~/images")
    spec = compose([])
    assert (spec.paths.data, spec.dataset.root) == ("/home/someone/images", "/home/someone/images")


ODD = "lr=0.1, größer (2)"


@pytest.mark.parametrize("quote", ["'", '"'])
@pytest.mark.parametrize("key", ["paths.data", "paths.cache", "paths.runs", "dataset.root"])
def test_a_path_in_quotes_may_have_any_signs(key: str, quote: str) -> None:
    group, name = key.split(".")
    assert getattr(getattr(compose([f"{key}={quote}/a/{ODD}{quote}"]), group), name) == f"/a/{ODD}"


def test_the_command_line_takes_paths_with_any_signs_and_a_tilde(tmp_path: Path, overrides: list[str]) -> None:
    runs, cache = f"paths.runs='~/{ODD}/runs'", f"paths.cache='{tmp_path / ODD}/cache'"
    command = [sys.executable, ROOT / "train.py", *overrides, runs, cache]
    environment = os.environ | {"HOME": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, shlex.join(map(str, command)) + result.stderr
    (summary,) = (tmp_path / ODD / "runs").glob("*/summary.json")
    assert result.stdout.rstrip().endswith(f"Record: {summary.parent}")


def test_hydras_folder_of_sweeps_is_of_one_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(user: int) -> str:
        monkeypatch.setattr(os, "getuid", lambda: user)
        return OmegaConf.create({"dir": OmegaConf.load(ROOT / "configs" / "train.yaml").hydra.sweep.dir}).dir

    assert folder(1000) != folder(1001)
    assert folder(1000) == folder(1000)
