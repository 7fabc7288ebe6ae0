"""Training the runs of a table on this machine: each run once, whatever is killed, locked, damaged or stopped."""

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

import pytest
from conftest import PROCESSES, ROOT
from demo_runs import TINY, demo, statuses, table_of, without_times
from tqdm import tqdm

from rst.experiments.errors import InputError
from rst.experiments.launch import local
from rst.experiments.launch.local import run
from rst.experiments.runs.record import SUMMARY_KEYS
from rst.experiments.spec import RunSpec
from rst.experiments.tables.expansion import PlannedRun, runs_of
from rst.experiments.training import loop

LONG = "recipe.epochs=60"


@pytest.fixture(scope="module", autouse=True)
def _quick_workers() -> Iterator[None]:
    """Workers that have imported torch already, and a sweep that looks at them 20 times a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "get_context", lambda _: PROCESSES)
        patch.setattr(local, "SECONDS_BETWEEN_LOOKS", 0.05)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[PlannedRun]:
    """Four rows of two seeds, trained by two workers."""
    runs = demo(tmp_path_factory.mktemp("trained"), seeds=2)
    assert run(runs, workers=2) == []
    return runs


@pytest.fixture
def copied(trained: list[PlannedRun], tmp_path: Path) -> list[PlannedRun]:
    """The same runs, which are done, in a folder that the test may change."""
    shutil.copytree(trained[0].record.folder.parent, tmp_path / "runs")
    return demo(tmp_path, seeds=2)


def written_at(planned: PlannedRun) -> int:
    """When the summary of a run was written, in nanoseconds."""
    return (planned.record.folder / "summary.json").stat().st_mtime_ns


# --------------------------------------------------------------------------------------------- which runs are trained


def test_every_run_is_trained_and_its_summary_has_the_keys_of_reports(trained: list[PlannedRun]) -> None:
    assert statuses(trained) == ["done"] * 8
    for planned in trained:
        assert set(SUMMARY_KEYS) <= planned.record.summary.keys()
        assert len(planned.record.metrics) == 1


def test_a_run_that_is_done_is_not_trained_again(trained: list[PlannedRun], capsys: pytest.CaptureFixture[str]) -> None:
    before = [written_at(planned) for planned in trained]
    assert run(trained) == []
    assert [written_at(planned) for planned in trained] == before
    assert "8 runs: 8 done, 0 diverged, 0 half done, 0 running, 0 failed, 0 missing" in capsys.readouterr().out


def test_a_run_whose_folder_was_deleted_is_the_only_one_that_is_trained_again(copied: list[PlannedRun]) -> None:
    before = {planned.record.id: written_at(planned) for planned in copied}
    shutil.rmtree(copied[3].record.folder)
    assert run(copied, workers=1) == []
    after = {planned.record.id: written_at(planned) for planned in copied}
    assert [name for name in before if after[name] != before[name]] == [copied[3].record.id]


def test_a_run_that_two_tables_have_is_one_run(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    assert [planned.record.id for planned in runs_of([table, table])] == [planned.record.id for planned in table.runs]


def test_all_runs_of_one_seed_are_trained_before_those_of_the_next(copied: list[PlannedRun]) -> None:
    for planned in copied:
        shutil.rmtree(planned.record.folder)
    assert run(copied, workers=1) == []
    copied.sort(key=written_at)
    assert [planned.spec.seed for planned in copied] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_the_progress_bar_counts_runs_and_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(demo(tmp_path)[:2], workers=1)  # SGD and SAM make 2 steps each, of 1 and 2 passes
    assert re.search(r"100%.* 6.00/6.00 passes .*2/2 runs", capsys.readouterr().err)


def test_asking_for_the_status_of_runs_writes_nothing(tmp_path: Path) -> None:
    assert statuses(demo(tmp_path)) == ["missing"] * 4
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- what goes wrong


def test_a_run_that_fails_is_named_and_recorded_and_does_not_stop_the_others_and_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = demo(tmp_path)
    sam = runs[1].record
    sam.folder.mkdir(parents=True)
    sam.checkpoint.write_text("not a checkpoint")
    (failure,) = run(runs, workers=1)
    assert re.match(rf"demo: SAM, seed 0 \({re.escape(sam.id)}\): .*checkpoint.pt is not a checkpoint", failure)
    assert failure in capsys.readouterr().out
    assert statuses(runs) == ["done", "failed", "done", "done"]
    assert failure.endswith((sam.folder / "failure.txt").read_text().strip())

    sam.checkpoint.unlink()
    assert run(runs, workers=1) == []
    assert "4 runs: 3 done, 0 diverged, 0 half done, 0 running, 1 failed, 0 missing" in capsys.readouterr().out
    assert statuses(runs) == ["done"] * 4
    assert not (sam.folder / "failure.txt").exists()


def test_a_run_that_diverges_is_neither_a_failure_nor_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = demo(tmp_path, "optimizer.lr=1e30")[:2]
    assert run(runs, workers=1) == []
    assert statuses(runs) == ["diverged"] * 2
    assert capsys.readouterr().out.count("the run has diverged") == 2
    starts = [planned.record.starts for planned in runs]
    assert run(runs, workers=1) == []
    assert [planned.record.starts for planned in runs] == starts
    assert "2 runs: 0 done, 2 diverged, 0 half done" in capsys.readouterr().out


def test_a_worker_that_is_killed_fails_the_run_it_was_training_and_no_other(tmp_path: Path) -> None:
    runs = demo(tmp_path, LONG)[:3]

    def kill_a_worker() -> None:
        while not all(planned.record.metrics for planned in runs[:2]):
            time.sleep(0.01)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    (failure,) = run(runs, workers=2)
    killer.join()
    assert "its worker ended" in failure
    assert sorted(statuses(runs)) == ["done", "done", "failed"]


@pytest.fixture
def sweep_py(tmp_path: Path) -> Callable[..., BaseProcess]:
    """Start ``python scripts/sweep.py demo *overrides`` in a process of its own, which prints to output.txt.

    Its one worker is started by ``method``: spawned, as it is for users, or forked, which is quicker.
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
    tqdm.monitor_interval = 0  # A fork could find the locks of the thread that this would start taken.
    local.get_context = lambda _: multiprocessing.get_context(method)
    local.SECONDS_BETWEEN_LOOKS = 0.02  # The run takes a second.
    sys.argv = ["sweep.py", "demo", "--workers=1", *overrides]
    runpy.run_path(str(ROOT / "scripts" / "sweep.py"), run_name="__main__")


def test_a_sweep_that_is_stopped_and_killed_ends_as_one_that_was_not(
    tmp_path: Path, sweep_py: Callable[..., BaseProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, runs = demo(tmp_path / "undisturbed", LONG)[:1], demo(tmp_path, LONG)[:1]
    record = runs[0].record
    for number, method in ((signal.SIGINT, "fork"), (signal.SIGTERM, "fork"), (signal.SIGKILL, "spawn")):
        epochs = len(record.metrics)
        process = sweep_py(method, *TINY, LONG, f"paths.runs={tmp_path / 'runs'}")
        assert process.pid
        while len(record.metrics) < epochs + 3:
            assert process.is_alive()
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.join(120)
        if number != signal.SIGKILL:
            assert process.exitcode == 128 + number
            assert "sweep.py: stopped; the same command goes on from here" in (tmp_path / "output.txt").read_text()
        while record.status == "running":  # A worker outlives its sweep for as long as a checkpoint takes.
            time.sleep(0.01)
        assert record.status == "half done"

    assert run(runs, workers=1) == run(undisturbed, workers=1) == []
    assert "1 runs: 0 done, 0 diverged, 1 half done" in capsys.readouterr().out
    assert len(record.metrics) == 60
    assert without_times(record) == without_times(undisturbed[0].record)


def test_a_summary_of_an_older_version_is_a_failure_that_says_to_delete_the_folder(copied: list[PlannedRun]) -> None:
    file = copied[0].record.folder / "summary.json"
    summary = json.loads(file.read_text())
    del summary["images_per_second"]
    file.write_text(json.dumps(summary))
    with pytest.raises(InputError, match=f"{copied[0].record.id}.*older version.*images_per_second.*delete the folder"):
        _ = copied[0].record.summary
    (failure,) = run(copied)
    assert "delete the folder to train the run again" in failure


def test_an_unfinished_last_line_of_the_metrics_is_left_out(copied: list[PlannedRun]) -> None:
    whole = copied[0].record.metrics
    with (copied[0].record.folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st')
    assert copied[0].record.metrics == whole


# ------------------------------------------------------------------------------------------- several sweeps, many GPUs

_TRAIN = local._train


def _train_and_note(spec: RunSpec) -> str | None:
    """Do what the workers of a sweep do, and note in starts.txt which runs they start to train."""
    to_the_end = loop.Run.to_the_end

    def noted(own: loop.Run) -> None:
        with (Path(spec.paths.runs) / "starts.txt").open("a") as file:
            file.write(f"{own.record.id}\n")
        to_the_end(own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "to_the_end", noted)
        return _TRAIN(spec)


def test_two_sweeps_of_the_same_runs_start_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_train", _train_and_note)
    runs = demo(tmp_path, "recipe.epochs=5", seeds=2)
    failures: list[str] = []
    sweeps = [threading.Thread(target=lambda: failures.extend(run(runs, workers=1))) for _ in range(2)]
    for sweep in sweeps:
        sweep.start()
    for sweep in sweeps:
        sweep.join()
    assert failures == []
    assert statuses(runs) == ["done"] * 8
    started = (tmp_path / "runs" / "starts.txt").read_text().split()
    assert sorted(started) == sorted(planned.record.id for planned in runs)
    assert [len(planned.record.metrics) for planned in runs] == [5] * 8


def test_a_run_of_another_process_is_waited_for_and_trained_here_if_that_process_leaves_it_undone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = demo(tmp_path)
    with runs[0].record.training(runs[0].spec):
        assert statuses(runs) == ["running", "missing", "missing", "missing"]
        waiting = threading.Thread(target=lambda: failures.extend(run(runs, workers=1)))
        failures: list[str] = []
        waiting.start()
        while statuses(runs) != ["running", "done", "done", "done"]:
            time.sleep(0.01)
        time.sleep(0.2)
        assert waiting.is_alive()
    waiting.join()
    assert failures == []
    assert statuses(runs) == ["done"] * 4
    assert "waits for 1 runs of another process" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("devices", "workers", "gpus"),
    [(1, None, ["0", "1", "2", "3"]), (1, 5, ["0", "1", "2", "3", "0"]), (2, None, ["0,1", "2,3"])],
)
def test_every_worker_gets_as_many_gpus_as_a_run_has_devices(
    devices: int,
    workers: int | None,
    gpus: list[str],
    trained: list[PlannedRun],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, pool = [], local._pool
    monkeypatch.setattr(local, "_pool", lambda threads, gpu: asked.append(gpu) or pool(threads, gpu))
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 4)
    changes = {"device": "auto", "devices": devices, "recipe": {"perturbation_batch": 16}}
    runs = [PlannedRun(planned.spec.changed(**changes), planned.record) for planned in trained]
    assert run(runs, workers) == []
    assert asked == gpus
