"""Variables of the environment: which of them a run follows, and which it must not follow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from rst.experiments.compose import compose
from rst.experiments.devices import check_devices, is_rank
from rst.experiments.training import ranks

LAUNCHER = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}
ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHER, *ADDRESS, "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


# ----------------------------------------------------------------------------------------------------------- WANDB_MODE


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_the_mode_of_wandb_in_the_environment_wins_over_the_default(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    assert compose([]).wandb.mode == mode


def test_the_command_wins_over_the_mode_of_wandb_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert compose(["wandb.mode=offline"]).wandb.mode == "offline"


def test_the_smoke_scale_wins_over_the_mode_of_wandb_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert compose(["scale=smoke"]).wandb.mode == "disabled"


def test_without_that_variable_the_mode_of_wandb_is_online() -> None:
    assert compose([]).wandb.mode == "online"


# ------------------------------------------------------------------------------------------- variables of a launcher


@pytest.mark.parametrize(
    "names", [["RANK"], ["WORLD_SIZE"], ["LOCAL_RANK"], ["LOCAL_WORLD_SIZE"], [*LAUNCHER]], ids=" ".join
)
def test_variables_of_a_launcher_that_lack_others_make_no_rank(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        monkeypatch.setenv(name, LAUNCHER[name])
    assert not is_rank()
    assert compose([]).devices == 1
    with ranks.joined(1) as world:
        assert (world.rank, world.size) == (0, 1)


def test_all_variables_of_a_launcher_make_a_rank_of_as_many_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (LAUNCHER | ADDRESS).items():
        monkeypatch.setenv(name, value)
    assert is_rank()
    assert compose([]).devices == 4


def test_a_left_over_number_of_ranks_on_this_host_does_not_count_as_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "many")
    check_devices(compose(["devices=2", "device=cpu"]))


@pytest.mark.parametrize("names", [["RANK"], [*LAUNCHER]], ids=" ".join)
def test_a_run_with_left_over_variables_of_a_launcher_prints_its_result(
    names: list[str], tmp_path: Path, overrides: list[str]
) -> None:
    environment = os.environ | {name: LAUNCHER[name] for name in names}
    command = [sys.executable, ROOT / "train.py", *overrides]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (result.returncode, "test error" in result.stdout) == (0, True), result.stderr


def test_bad_input_with_left_over_variables_of_a_launcher_is_answered(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "train.py", "schedule.p=2"]
    environment = os.environ | {"LOCAL_RANK": "3"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr.count("train.py: ")) == (1, 1)
