"""A sweep of 40 runs whose workers and whose runner are killed at random moments ends with each run done, once."""

import signal
import time
from pathlib import Path

import pytest
from conftest import PROCESSES
from helpers import drawing, run_and_kill_workers, starts_in
from test_runner import TINY, but_for_times

from rst.experiments.sweep import Job, load_table

pytestmark = pytest.mark.faults

EPOCHS = 3


def sweep(folder: Path) -> list[Job]:
    """The four rows of the demo, of 5 seeds, at two learning rates: 40 runs of 6 steps."""
    more = [*TINY, f"recipe.epochs={EPOCHS}", "dataset.test_images=20", f"paths.runs={folder / 'runs'}"]
    return [job for lr in (0.1, 0.05) for job in load_table("demo", [*more, f"optimizer.lr={lr}"]).jobs]


def test_a_sweep_of_40_runs_whose_workers_and_runner_are_killed_ends_with_each_run_done_once(tmp_path, capsys):
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    for folder in (disturbed, undisturbed):
        folder.mkdir()
    jobs, draw, begin, sessions, runners = sweep(disturbed), drawing("sweep"), time.monotonic(), 0, 0
    assert len({job.record.id for job in jobs}) == 40
    written: dict[str, int] = {}
    while len(written) < 40:
        sessions += 1
        assert sessions < 60, "the sweep makes no headway"
        waits = [draw.uniform(0, 0.5) for _ in range(draw.randrange(4))]
        process = PROCESSES.Process(target=run_and_kill_workers, args=(jobs, disturbed, waits))
        process.start()
        enough = starts_in(disturbed) + draw.randrange(1, 12)
        while process.is_alive() and starts_in(disturbed) < enough:
            time.sleep(0.02)
        process.join(draw.uniform(0, 0.5))
        process.kill()
        process.join()
        runners += process.exitcode == -signal.SIGKILL
        for job in jobs:
            if job.record.done:
                time_of_writing = (job.record.folder / "summary.json").stat().st_mtime_ns
                assert written.setdefault(job.record.id, time_of_writing) == time_of_writing
    workers = len((disturbed / "kills.txt").read_text().split())

    assert [job.record.status for job in jobs] == ["done"] * 40
    starts = [line.split() for line in (disturbed / "starts.txt").read_text().splitlines()]
    assert {name for name, _ in starts} == set(written)
    assert {how for _, how in starts} == {"undone"}
    assert workers >= 3
    assert runners >= 3

    expected = sweep(undisturbed)
    process = PROCESSES.Process(target=run_and_kill_workers, args=(expected, undisturbed, []))
    process.start()
    process.join()
    for job, as_expected in zip(jobs, expected, strict=True):
        assert [line["epoch"] for line in job.record.metrics] == list(range(EPOCHS))
        assert but_for_times(job.record) == but_for_times(as_expected.record)
        assert not (job.record.folder / "failure.txt").exists()
    with capsys.disabled():
        print(
            f"\n40 runs in {sessions} sessions and {len(starts)} starts: {workers} workers and {runners} runners ",
            end="",
        )
        print(f"killed, in {time.monotonic() - begin:.0f} s")
