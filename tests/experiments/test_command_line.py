"""The command line ``python train.py`` as a user meets it: what it prints and writes, and its exit status."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hydra import initialize_config_dir

from rst.experiments.compose import compose
from rst.experiments.data.cifar_files import KNOWN
from rst.experiments.runs.record import Record


def run(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """``python train.py`` with these arguments, in this folder."""
    environment = {key: value for key, value in os.environ.items() if key != "RST_DATA"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "train.py", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def summaries(runs: Path) -> dict[str, dict[str, float]]:
    """The summary of every run that is done, by its id."""
    return {path.parent.name: json.loads(path.read_text()) for path in runs.glob("*/summary.json")}


def complaints(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The sentences of ``train.py`` on stderr, without the progress bars."""
    return [line for line in result.stderr.splitlines() if line.startswith("train.py: ")]


# ------------------------------------------------------------------------------------------------------------ one run


def test_the_config_that_is_printed_has_the_values_of_the_papers_table_16(tmp_path: Path) -> None:
    result = run(["model=wrn28_10", "scheme=grst", "--cfg", "job"], tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    config = yaml.safe_load(result.stdout)
    expected = {
        "augmentation": {"flip": True, "crop_padding": 4, "cutout": 0, "mixup_alpha": 0.0},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0},
        "model": {"depth": 28, "widen_factor": 10},
        "schedule": {"p": 0.5},
        "scheme": {"gamma_ratio": "auto"},
        "variant": {"name": "sam", "rho": "${recipe.rho}"},
    }
    expected["recipe"] = {"epochs": 200, "batch_size": 256, "perturbation_batch": 64, "clip_norm": 5.0}
    expected["recipe"] |= {"rho": 0.1, "warmup_epochs": 0, "l2": 1e-3}
    for group, values in expected.items():
        assert {key: config[group][key] for key in values} == values
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_group_that_a_command_chooses_from(tmp_path: Path) -> None:
    result = run(["--help"], tmp_path)
    groups = {folder.name for folder in (ROOT / "configs").iterdir() if folder.is_dir()} - {"tables"}
    assert result.returncode == 0
    assert groups <= set(re.findall(r"\w+", result.stdout))


# ------------------------------------------------------------------------------------------------------------ a sweep


def test_a_sweep_writes_a_record_of_every_combination_below_the_folder_it_runs_in(
    tmp_path: Path, overrides: list[str]
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    result = run(["-m", "scheme=sgd,sam", "seed=0,1", *overrides, "paths.runs=my/runs"], folder)
    assert result.returncode == 0, result.stderr
    records = summaries(folder / "my" / "runs")
    found = sorted((summary["seed"], summary["extra_propagations_realised"]) for summary in records.values())
    assert found == [(0, 0.0), (0, 1.0), (1, 0.0), (1, 1.0)]
    assert all(f"Record: my/runs/{record}" in result.stdout for record in records)
    assert [path.name for path in folder.iterdir()] == ["my"]


def test_a_sweep_goes_on_after_runs_that_fail_and_names_them(tmp_path: Path, overrides: list[str]) -> None:
    result = run(["-m", "optimizer.lr=-1,1e30,0.1", *overrides], tmp_path)
    assert result.returncode == 1
    assert len(summaries(tmp_path / "runs")) == 1
    refused, diverged = complaints(result)
    assert "optimizer.lr=-1" in refused
    assert "diverged" in diverged
    assert "1e+30" in diverged
    assert "Traceback" not in result.stderr


# ----------------------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_answered_by_one_sentence_and_exit_status_1_and_nothing_is_written(
    tmp_path: Path, overrides: list[str]
) -> None:
    parquet = tmp_path / "data" / "cifar10" / "train-00000-of-00001.parquet"
    parquet.parent.mkdir(parents=True)
    parquet.write_bytes(b"PAR1 and then nonsense")
    (parquet.parent / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and then nonsense")
    (tmp_path / "file").touch()
    runs = f"paths.runs={tmp_path / 'file' / 'runs'}"
    words_of_command = {
        "scheme=asam": ["scheme=asam", "gnr, grst, rst, sam, sgd"],
        "schedule.p=1.5": ["schedule: p", "1.5", "[0, 1]"],
        "scheme=sam schedule=constant": ["scheme=sam", "constant(p=0.5)", "leave the schedule out"],
        "device=tpu": ["device=tpu", "write auto, cpu, cuda"],
        f"dataset=cifar10 dataset.root={tmp_path / 'none'}": [
            "dataset.root=",
            str(tmp_path / "none"),
            "write dataset.root=<",
        ],
        f"dataset=cifar10 dataset.root={tmp_path / 'data'}": [str(parquet), "copy or download it again"],
        runs: [runs, "write paths.runs=<folder>"],
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda command: run([*overrides, *command.split()], tmp_path), words_of_command))
    for (command, words), result in zip(words_of_command.items(), results, strict=True):
        assert (command, result.returncode, result.stdout) == (command, 1, "")
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("train.py: ")
        assert [word for word in words if word not in result.stderr] == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [["--epochs", "10"], ["scheme=sam", "--epochs=10"]], ids=" ".join)
def test_a_key_that_is_written_as_an_option_is_answered_by_how_to_write_it(tmp_path: Path, words: list[str]) -> None:
    result = run(words, tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "train.py: --epochs is no option: write keys without dashes, as in recipe.epochs=10 (--cfg job: all).\n"
    )


# ----------------------------------------------------------------------------------------------------------- real data


@pytest.mark.slow
def test_a_small_network_learns_from_real_cifar10(tmp_path: Path, real_data: Path) -> None:
    paths = [f"paths.{key}={tmp_path / key}" for key in ("cache", "runs")]
    data = [f"dataset.root={real_data}", "dataset.source=auto", "dataset.train_images=1024", "dataset.test_images=500"]
    small = ["dataset=cifar10", "model=resnet18", "scheme=grst", "scale=smoke", "recipe.epochs=4"]
    result = run([*small, *data, *paths], tmp_path)
    assert result.returncode == 0, result.stderr
    ((run_id, summary),) = summaries(tmp_path / "runs").items()
    assert summary["test_error"] < 75  # guessing has 90
    assert Record(tmp_path / "runs" / run_id).environment["data_digest"] == KNOWN["cifar10"].digest


# ------------------------------------------------------------------------------------------------- what a person sees

QUICK = ["scale=smoke", "device=cpu", "wandb.mode=disabled", "recipe.epochs=1"]


def test_the_result_says_at_which_scale_on_which_images_and_whether_it_was_there_before(tmp_path: Path) -> None:
    command = [*QUICK, f"paths.runs={tmp_path / 'runs'}"]
    first, second, anew = run(command, tmp_path), run(command, tmp_path), run([*command, "force=true"], tmp_path)
    [name] = summaries(tmp_path / "runs").keys() - {path.name for path in (tmp_path / "runs").glob("*.old-1")}
    where = "(scale=smoke, digits as cifar10): test error "
    assert first.stdout.startswith(f"{name} {where}")
    assert second.stdout.startswith(f"{name} was done before, and force=true trains it anew {where}")
    assert anew.stdout.startswith(f"{name} {where}")
    assert (tmp_path / "runs" / f"{name}.old-1" / "summary.json").exists()


def test_a_result_without_the_sharpness_that_a_command_asks_for_says_so(tmp_path: Path) -> None:
    command = [*QUICK, "dataset.train_images=16", "recipe.batch_size=16", f"paths.runs={tmp_path / 'runs'}"]
    asking, without = [*command, "measure_sharpness=true"], "was done before without measure_sharpness, and force=true"
    assert "was done before" not in run(command, tmp_path).stdout
    assert without in run(asking, tmp_path).stdout
    anew = [*asking, "force=true"]
    assert "was done before" not in run(anew, tmp_path).stdout
    again = run(asking, tmp_path).stdout
    assert "was done before, and force=true" in again
    assert without not in again


def test_each_result_of_a_sweep_names_its_overrides(tmp_path: Path) -> None:
    result = run(["-m", *QUICK, "scheme=sgd,sam", f"paths.runs={tmp_path / 'runs'}"], tmp_path)
    lines = [line for line in result.stdout.splitlines() if "test error" in line]
    assert ["scheme=sgd" in lines[0].split(" -> ")[0], "scheme=sam" in lines[1].split(" -> ")[0]] == [True, True]


def test_a_full_size_run_on_a_cpu_is_advised_to_be_smaller_and_a_small_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rst.experiments.data.run_data.RunData", lambda *arguments: None)
    advise = runpy.run_path(str(ROOT / "train.py"), run_name="train")["advise"]
    command = ["device=cpu", f"paths.runs={tmp_path}/runs"]
    small = [compose([*command, "scale=smoke"]), compose([*command, "recipe.epochs=1", "dataset.train_images=512"])]
    full = compose(command)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):  # as inside Hydra's main function
        for spec in small:
            advise(spec)
        assert capsys.readouterr().err == ""
        advise(full)
    advice = capsys.readouterr().err
    assert re.match(r"train.py: this run takes about 1.\d hours on A100, and far longer on the CPU that it has", advice)
    assert "write scale=cpu" in advice
    assert advice.count("\n") == 1


@pytest.mark.parametrize(
    "script", ["train.py", *sorted(f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py"))]
)
def test_help_that_is_cut_off_ends_quietly(script: str) -> None:
    command = f"'{sys.executable}' '{ROOT / script}' --help | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300)
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
