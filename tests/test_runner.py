"""From tables to the records of their runs: each run once, whatever is killed, locked, broken or stopped meanwhile."""

import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import PROCESSES, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from rst.experiments import estimate
from rst.experiments.config import InputError, load_config
from rst.experiments.estimate import NETWORKS, expected_passes, plan, speed
from rst.experiments.record import SUMMARY_KEYS, Record
from rst.experiments.sweep import Job, Table, jobs_of, load_table
from rst.training import loop, run, runner

TINY = ["recipe.epochs=1", "dataset.train_images=64", "dataset.test_images=50", "recipe.batch_size=32"]
TINY += ["recipe.perturbation_batch=32", "device=cpu"]
EPOCHS = "recipe.epochs=60"


def table_of(folder: Path, *overrides: str, seeds: int = 1) -> Table:
    """The four rows of the demo, of so many seeds: each of 2 steps, if the overrides do not say otherwise."""
    return load_table("demo", [*TINY, f"paths.runs={folder / 'runs'}", f"max_seeds={seeds}", *overrides])


def demo(folder: Path, *overrides: str, seeds: int = 1) -> list[Job]:
    return table_of(folder, *overrides, seeds=seeds).jobs


def statuses(jobs: list[Job]) -> list[str]:
    return [job.record.status for job in jobs]


def but_for_times(record: Record) -> list[dict[str, Any]]:
    return [{key: value for key, value in epoch.items() if key != "train_seconds"} for epoch in record.metrics]


@pytest.fixture(scope="module", autouse=True)
def _quick_workers() -> Iterator[None]:
    """Workers that need not import torch, and a runner that looks at them more often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "get_context", lambda _: PROCESSES)
        patch.setattr(runner, "SECONDS_BETWEEN_LOOKS", 0.05)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    """Four rows of two seeds, trained by two workers."""
    jobs = demo(tmp_path_factory.mktemp("trained"), seeds=2)
    assert run(jobs, workers=2) == []
    return jobs


@pytest.fixture
def copied(trained: list[Job], tmp_path: Path) -> list[Job]:
    """The same runs, done, in a folder that a test may change."""
    shutil.copytree(trained[0].record.folder.parent, tmp_path / "runs")
    return demo(tmp_path, seeds=2)


# ------------------------------------------------------------------------------------------------- what gets trained


def test_every_run_is_trained_and_its_summary_has_what_reports_need(trained: list[Job]) -> None:
    assert statuses(trained) == ["done"] * 8
    for job in trained:
        assert set(SUMMARY_KEYS) <= job.record.summary.keys()
        assert len(job.record.metrics) == 1


def test_a_run_that_is_done_is_not_trained_again(trained: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    before = [(job.record.folder / "summary.json").stat().st_mtime_ns for job in trained]
    assert run(trained) == []
    assert [(job.record.folder / "summary.json").stat().st_mtime_ns for job in trained] == before
    assert "8 runs: 8 done, 0 half done, 0 running, 0 failed, 0 missing" in capsys.readouterr().out


def test_a_deleted_run_is_the_one_that_is_trained_again(copied: list[Job]) -> None:
    before = {job.record.id: (job.record.folder / "summary.json").stat().st_mtime_ns for job in copied}
    shutil.rmtree(copied[3].record.folder)
    assert run(copied, workers=1) == []
    after = {job.record.id: (job.record.folder / "summary.json").stat().st_mtime_ns for job in copied}
    assert [name for name in before if after[name] != before[name]] == [copied[3].record.id]


def test_a_run_of_two_tables_is_one(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    assert [job.record.id for job in jobs_of([table, table])] == [job.record.id for job in table.jobs]


def test_seeds_come_one_after_the_other(copied: list[Job]) -> None:
    for job in copied:
        shutil.rmtree(job.record.folder)
    assert run(copied, workers=1) == []
    copied.sort(key=lambda job: (job.record.folder / "summary.json").stat().st_mtime_ns)
    assert [job.cfg.seed for job in copied] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_the_line_of_the_sweep_counts_runs_and_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(demo(tmp_path)[:2], workers=1)  # SGD and SAM, of 2 steps
    assert re.search(r"100%.* 6.00/6.00 passes .*2/2 runs", capsys.readouterr().err)


# ----------------------------------------------------------------------------------------------- what goes wrong


def test_a_run_that_fails_is_named_and_kept_and_stops_no_other_and_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = demo(tmp_path)
    sam = jobs[1].record
    sam.folder.mkdir(parents=True)
    sam.checkpoint.write_text("not a checkpoint")
    (failure,) = run(jobs, workers=1)
    assert re.match(rf"demo: SAM, seed 0 \({re.escape(sam.id)}\): .*checkpoint.pt is not a checkpoint", failure)
    assert failure in capsys.readouterr().out
    assert statuses(jobs) == ["done", "failed", "done", "done"]
    assert failure.endswith((sam.folder / "failure.txt").read_text().strip())

    sam.checkpoint.unlink()
    assert run(jobs, workers=1) == []
    assert "4 runs: 3 done, 0 half done, 0 running, 1 failed, 0 missing" in capsys.readouterr().out
    assert statuses(jobs) == ["done"] * 4
    assert not (sam.folder / "failure.txt").exists()


def test_a_worker_that_is_killed_costs_the_run_it_was_at_and_no_other(tmp_path: Path) -> None:
    jobs = demo(tmp_path, EPOCHS)[:3]

    def kill_a_worker() -> None:
        while not all(job.record.metrics for job in jobs[:2]):
            time.sleep(0.01)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    (failure,) = run(jobs, workers=2)
    killer.join()
    assert "its worker ended" in failure
    assert sorted(statuses(jobs)) == ["done", "done", "failed"]


@pytest.fixture
def sweep_py(tmp_path: Path) -> Callable[..., BaseProcess]:
    """Start ``python scripts/sweep.py demo *overrides`` in a process of its own, which prints to output.txt.

    Its one worker is spawned, as a user's, or forked, which is quicker.
    """

    def start(method: str, *overrides: str) -> BaseProcess:
        process = PROCESSES.Process(target=_sweep_py, args=(method, overrides, tmp_path / "output.txt"))
        process.start()
        return process

    return start


def _sweep_py(method: str, overrides: tuple[str, ...], output: Path) -> None:
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    tqdm.monitor_interval = 0  # no thread, or a fork may find its locks taken
    runner.get_context = lambda _: multiprocessing.get_context(method)
    runner.SECONDS_BETWEEN_LOOKS = 0.02  # the run is one of a second
    sys.argv = ["sweep.py", "demo", "--workers=1", *overrides]
    runpy.run_path(str(ROOT / "scripts" / "sweep.py"), run_name="__main__")


def test_a_sweep_that_is_stopped_and_killed_ends_as_if_it_had_not_been(
    tmp_path: Path, sweep_py: Callable[..., BaseProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, jobs = demo(tmp_path / "undisturbed", EPOCHS)[:1], demo(tmp_path, EPOCHS)[:1]
    record = jobs[0].record
    for number, method in ((signal.SIGINT, "fork"), (signal.SIGTERM, "fork"), (signal.SIGKILL, "spawn")):
        epochs = len(record.metrics)
        process = sweep_py(method, *TINY, EPOCHS, f"paths.runs={tmp_path / 'runs'}")
        assert process.pid
        while len(record.metrics) < epochs + 3:
            assert process.is_alive()
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.join(120)
        if number != signal.SIGKILL:
            assert process.exitcode == 128 + number
            assert "sweep.py: stopped; the same command goes on from here" in (tmp_path / "output.txt").read_text()
        while record.status == "running":  # a worker outlives its runner for as long as a checkpoint takes
            time.sleep(0.01)
        assert record.status == "half done"

    assert run(jobs, workers=1) == run(undisturbed, workers=1) == []
    assert "1 runs: 0 done, 1 half done" in capsys.readouterr().out
    assert len(record.metrics) == 60
    assert but_for_times(record) == but_for_times(undisturbed[0].record)


def test_a_summary_of_an_older_version_is_answered_with_what_to_do(copied: list[Job]) -> None:
    file = copied[0].record.folder / "summary.json"
    summary = json.loads(file.read_text())
    del summary["images_per_second"]
    file.write_text(json.dumps(summary))
    with pytest.raises(InputError, match=f"{copied[0].record.id}.*older version.*images_per_second.*delete the folder"):
        _ = copied[0].record.summary
    (failure,) = run(copied)
    assert "delete the folder to train the run again" in failure


def test_half_a_line_of_metrics_does_not_count(copied: list[Job]) -> None:
    whole = copied[0].record.metrics
    with (copied[0].record.folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st')
    assert copied[0].record.metrics == whole


# --------------------------------------------------------------------------------------------- two runners, many GPUs


def _counted(cfg: DictConfig) -> str | None:
    """`runner._train` that writes down which runs start."""
    to_the_end = loop.Run.to_the_end

    def counted(own: loop.Run) -> None:
        with (Path(cfg.paths.runs) / "starts.txt").open("a") as file:
            file.write(f"{own.record.id}\n")
        to_the_end(own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "to_the_end", counted)
        return _TRAIN(cfg)


_TRAIN = runner._train


def test_two_runners_on_one_folder_start_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_train", _counted)
    jobs = demo(tmp_path, "recipe.epochs=5", seeds=2)
    failures: list[str] = []
    runners = [threading.Thread(target=lambda: failures.extend(run(jobs, workers=1))) for _ in range(2)]
    for one in runners:
        one.start()
    for one in runners:
        one.join()
    assert failures == []
    assert statuses(jobs) == ["done"] * 8
    assert sorted((tmp_path / "runs" / "starts.txt").read_text().split()) == sorted(job.record.id for job in jobs)
    assert [len(job.record.metrics) for job in jobs] == [5] * 8


def test_a_run_of_another_process_is_waited_for_and_taken_over_where_it_ended_undone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = demo(tmp_path)
    with jobs[0].record.training(jobs[0].cfg):
        assert statuses(jobs) == ["running", "missing", "missing", "missing"]
        waiting = threading.Thread(target=lambda: failures.extend(run(jobs, workers=1)))
        failures: list[str] = []
        waiting.start()
        while statuses(jobs) != ["running", "done", "done", "done"]:
            time.sleep(0.01)
        time.sleep(0.2)
        assert waiting.is_alive()
    waiting.join()
    assert failures == []
    assert statuses(jobs) == ["done"] * 4
    assert "waits for 1 runs of another process" in capsys.readouterr().out


def test_to_ask_for_the_status_makes_nothing(tmp_path: Path) -> None:
    assert statuses(demo(tmp_path)) == ["missing"] * 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("devices", "workers", "gpus"),
    [(1, None, ["0", "1", "2", "3"]), (1, 5, ["0", "1", "2", "3", "0"]), (2, None, ["0,1", "2,3"])],
)
def test_workers_share_the_gpus_out_as_many_to_each_as_a_run_has(
    devices: int, workers: int | None, gpus: list[str], trained: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, pool = [], runner._pool
    monkeypatch.setattr(runner, "_pool", lambda threads, gpu: asked.append(gpu) or pool(threads, gpu))
    monkeypatch.setattr(runner.torch.cuda, "device_count", lambda: 4)
    jobs = [Job(job.cfg.copy(), job.record) for job in trained]
    for job in jobs:
        job.cfg.device, job.cfg.devices = "auto", devices
    assert run(jobs, workers) == []
    assert asked == gpus


# ------------------------------------------------------------------------------------------------------- what it costs


def test_a_dry_run_trains_nothing_and_says_what_a_sweep_would_cost(
    tmp_path: Path, script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*TINY, f"paths.runs={tmp_path / 'runs'}", "max_seeds=1"]
    assert script("sweep", "demo", "table05", "--dry-run", *overrides) == 0
    printed = capsys.readouterr().out
    assert "In all 4 runs: 0 done, 0 half done, 0 running, 0 failed, 4 missing" in printed
    assert re.search(r"missing +4 +SAM +digits-wrn10_1-constant-p1", printed)
    assert "unknown: no run of wrn10_1 has been timed" in printed
    assert "12 passes left: " in printed  # of 2 steps: SGD 2, SAM 4, RST 3, G-RST 3
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_many_runs_has_a_line_a_cell(copied: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "FEW", 7)
    shutil.rmtree(copied[2].record.folder)  # SAM
    text = plan([table_of(copied[0].record.folder.parents[1], seeds=2)])
    assert re.search(r"^1/2 done +8 +SAM +digits-wrn10_1-constant-p1.0-c1$", text, re.MULTILINE)
    assert re.search(r"^2/2 done +4 +SGD +digits-wrn10_1-constant-p0.0$", text, re.MULTILINE)


def test_words_that_are_no_table_are_answered_with_a_sentence(
    script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("sweep", "demos", "--dry-run") == 1
    assert re.match(r"sweep.py: there is no table demos: choose one of .*demo", capsys.readouterr().err)
    assert script("sweep", "seed=1") == 2
    assert "no table: write a file of configs/tables" in capsys.readouterr().err


@given(p=st.floats(0, 1), epochs=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_passes_are_the_steps_and_their_extra_passes(p: float, epochs: int) -> None:
    cfg = load_config(["dataset=digits", "model=wrn10_1", "scheme=rst", *TINY, f"recipe.epochs={epochs}"])
    cfg.schedule.p = p
    assert expected_passes(cfg) == pytest.approx(2 * epochs * (1 + p))


def test_passes_are_those_that_training_counts(trained: list[Job]) -> None:
    for job in trained:
        if job.cfg.scheme.name in ("sgd", "sam"):
            assert job.record.summary["propagations"] == expected_passes(job.cfg)


def test_time_is_that_of_the_runs_of_the_network_that_are_done(copied: list[Job]) -> None:
    found = speed(copied[0].cfg)
    assert found
    summaries = [job.record.summary for job in copied]
    assert found.seconds == pytest.approx(sum(own["train_seconds"] / own["propagations"] for own in summaries) / 8)
    assert found.source == "8 runs that are done, on cpu"
    for key, value in (("recipe.batch_size", 16), ("model.widen_factor", 2), ("scale", "smoke")):
        other = copied[0].cfg.copy()
        OmegaConf.update(other, key, value)
        assert speed(other) is None


def test_only_what_is_left_is_paid_for(copied: list[Job]) -> None:
    table = table_of(copied[0].record.folder.parents[1], seeds=2)
    assert "0 passes left: 0.00 hours" in plan([table])
    shutil.rmtree(copied[2].record.folder)
    assert "\n4 passes left" in plan([table])
    copied[2].record.folder.mkdir()
    (copied[2].record.folder / "metrics.jsonl").write_text('{"propagations": 1.0}\n')
    assert "\n3 passes left" in plan([table])


@pytest.mark.parametrize(
    ("overrides", "name", "gpus"),
    [
        (["model=wrn28_10", "dataset=cifar100"], "table03", 4),
        (["model=vit_s"], "table03", 4),
        (["model=resnet50", "dataset=imagenet"], "table04", 4),
        (["model=vgg16_bn", "recipe=single_gpu"], "table14", 1),
    ],
)
def test_sgd_takes_as_long_as_the_paper_prints(overrides: list[str], name: str, gpus: int, tmp_path: Path) -> None:
    cfg = load_config(["scheme=sgd", f"paths.runs={tmp_path}", *overrides])
    numbers = pd.read_csv(ROOT / "results" / "paper" / f"{name}.csv")
    whole = numbers[(numbers["model"] == NETWORKS[cfg.network]) & (numbers["metric"] == "time_min")]
    minutes = whole[whole["source_note"].str.contains("one A100") == (gpus == 1)]["mean"].iloc[0]
    found = speed(cfg)
    assert found
    assert found.seconds * expected_passes(cfg) == pytest.approx(gpus * 60 * minutes)
    assert found.source == f"the paper's {name}: {minutes:g} minutes on {gpus} A100"


def test_a_network_that_nobody_timed_has_no_time(tmp_path: Path) -> None:
    assert speed(load_config(["model=wrn16_1", f"paths.runs={tmp_path}"])) is None
    assert speed(load_config(["model=resnet18", "scale=smoke", f"paths.runs={tmp_path}"])) is None
