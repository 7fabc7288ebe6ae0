"""The command line ``python train.py``, as a user meets it: what it prints, what it leaves behind, its exit code."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from test_recipes import TABLE_16, values

from rst.data.cifar import SPECS
from rst.experiments.record import Record

TRAIN = Path(__file__).parents[1] / "train.py"


def run(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """``python train.py`` with these arguments, in this folder."""
    environment = {key: value for key, value in os.environ.items() if key != "RST_DATA"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, TRAIN, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def summaries(runs: Path) -> dict[str, dict[str, float]]:
    return {path.parent.name: json.loads(path.read_text()) for path in runs.glob("*/summary.json")}


def complaints(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The sentences of ``train.py``, among the progress bars."""
    return [line for line in result.stderr.splitlines() if line.startswith("train.py: ")]


# ------------------------------------------------------------------------------------------------------------ one run


def test_config_is_printed_and_is_table_16(tmp_path: Path) -> None:
    result = run(["model=wrn28_10", "scheme=grst", "--cfg", "job"], tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    cfg = OmegaConf.create(result.stdout)
    assert isinstance(cfg, DictConfig)
    assert values(cfg, TABLE_16) == TABLE_16
    assert (cfg.model.depth, cfg.model.widen_factor) == (28, 10)
    assert (cfg.schedule.p, cfg.scheme.gamma_ratio) == (0.5, "auto")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ a sweep


def test_sweep_makes_a_record_of_every_combination_below_the_folder_it_runs_in(
    tmp_path: Path, overrides: list[str]
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    result = run(["-m", "scheme=sgd,sam", "seed=0,1", *overrides, "paths.runs=my/runs"], folder)
    assert result.returncode == 0, result.stderr
    records = summaries(folder / "my" / "runs")
    found = sorted((s["seed"], s["extra_propagations_realised"]) for s in records.values())
    assert found == [(0, 0.0), (0, 1.0), (1, 0.0), (1, 1.0)]
    assert all(f"Record: my/runs/{record}" in result.stdout for record in records)
    assert [path.name for path in folder.iterdir()] == ["my"]


def test_sweep_outlives_the_runs_that_fail_and_says_which(tmp_path: Path, overrides: list[str]) -> None:
    result = run(["-m", "optimizer.lr=-1,1e30,0.1", *overrides], tmp_path)
    assert result.returncode == 1
    assert len(summaries(tmp_path / "runs")) == 1
    refused, diverged = complaints(result)
    assert "optimizer.lr=-1" in refused
    assert "diverged" in diverged
    assert "1e+30" in diverged
    assert "Traceback" not in result.stderr


# ----------------------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_one_sentence_on_stderr_exit_code_1_and_nothing_written(
    tmp_path: Path, overrides: list[str]
) -> None:
    parquet = tmp_path / "data" / "cifar10" / "train-00000-of-00001.parquet"
    parquet.parent.mkdir(parents=True)
    parquet.write_bytes(b"PAR1 and then nonsense")
    (parquet.parent / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and then nonsense")
    (tmp_path / "file").touch()
    refused = {
        "scheme=asam": ["scheme=asam", "gnr, grst, rst, sam, sgd"],
        "schedule.p=1.5": ["schedule: p", "1.5", "[0, 1]"],
        "scheme=sam schedule=constant": ["scheme=sam", "constant(p=0.5)", "leave the schedule out"],
        "device=tpu": ["device=tpu", "device=cpu"],
        f"dataset=cifar10 dataset.root={tmp_path / 'none'}": [
            "dataset.root=",
            str(tmp_path / "none"),
            "write the folder",
        ],
        f"dataset=cifar10 dataset.root={tmp_path / 'data'}": [str(parquet), "copy or download it again"],
        f"paths.runs={tmp_path / 'file' / 'runs'}": [
            f"paths.runs={tmp_path / 'file' / 'runs'}",
            "write paths.runs=<folder>",
        ],
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda command: run([*overrides, *command.split()], tmp_path), refused))
    for (command, words), result in zip(refused.items(), results, strict=True):
        assert (command, result.returncode, result.stdout) == (command, 1, "")
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("train.py: ")
        assert [word for word in words if word not in result.stderr] == []
    assert not (tmp_path / "runs").exists()


# ----------------------------------------------------------------------------------------------------------- real data


@pytest.mark.slow
def test_a_small_network_learns_from_real_cifar10(tmp_path: Path, real_data: Path) -> None:
    paths = [f"paths.{key}={tmp_path / key}" for key in ("cache", "runs")]
    data = [f"dataset.root={real_data}", "dataset.source=auto", "dataset.train_images=1024", "dataset.test_images=500"]
    small = ["dataset=cifar10", "model=resnet18", "scheme=grst", "scale=smoke", "recipe.epochs=4"]
    result = run([*small, *data, *paths], tmp_path)
    assert result.returncode == 0, result.stderr
    ((run_id, summary),) = summaries(tmp_path / "runs").items()
    assert summary["test_error"] < 75  # chance is 90
    assert Record(tmp_path / "runs" / run_id).environment["data_digest"] == SPECS["cifar10"].digest
