"""A sweep of 40 runs, whose workers and main process are killed at random moments, trains each run to its end, once."""

import signal
import time
from pathlib import Path

import pytest
from conftest import PROCESSES
from demo_runs import TINY, without_times

from rst.experiments.tables.expansion import PlannedRun, load_table

from .helpers import drawing, starts_in, sweep_and_kill_workers

pytestmark = pytest.mark.faults

EPOCHS = 3


def planned_runs(folder: Path) -> list[PlannedRun]:
    """The four rows of the demo with 5 seeds and two learning rates: 40 runs of 6 steps."""
    more = [*TINY, f"recipe.epochs={EPOCHS}", "dataset.test_images=20", f"paths.runs={folder / 'runs'}"]
    return [planned for lr in (0.1, 0.05) for planned in load_table("demo", [*more, f"optimizer.lr={lr}"]).runs]


def test_a_sweep_whose_workers_and_main_process_are_killed_again_and_again_does_every_run_once(tmp_path, capsys):
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    for folder in (disturbed, undisturbed):
        folder.mkdir()
    runs, draw, begin, sessions, main_kills = planned_runs(disturbed), drawing("sweep"), time.monotonic(), 0, 0
    assert len({planned.record.id for planned in runs}) == 40
    written: dict[str, int] = {}
    while len(written) < 40:
        sessions += 1
        assert sessions < 60, "the sweep makes no headway"
        waits = [draw.uniform(0, 0.5) for _ in range(draw.randrange(4))]
        process = PROCESSES.Process(target=sweep_and_kill_workers, args=(runs, disturbed, waits))
        process.start()
        enough = starts_in(disturbed) + draw.randrange(1, 12)
        while process.is_alive() and starts_in(disturbed) < enough:
            time.sleep(0.02)
        process.join(draw.uniform(0, 0.5))
        process.kill()
        process.join()
        main_kills += process.exitcode == -signal.SIGKILL
        for planned in runs:
            if planned.record.done:
                time_of_writing = (planned.record.folder / "summary.json").stat().st_mtime_ns
                assert written.setdefault(planned.record.id, time_of_writing) == time_of_writing
    worker_kills = len((disturbed / "kills.txt").read_text().split())

    assert [planned.record.status for planned in runs] == ["done"] * 40
    starts = [line.split() for line in (disturbed / "starts.txt").read_text().splitlines()]
    assert {name for name, _ in starts} == set(written)
    assert {how for _, how in starts} == {"undone"}
    assert worker_kills >= 3
    assert main_kills >= 3

    expected = planned_runs(undisturbed)
    process = PROCESSES.Process(target=sweep_and_kill_workers, args=(expected, undisturbed, []))
    process.start()
    process.join()
    for planned, as_expected in zip(runs, expected, strict=True):
        assert [line["epoch"] for line in planned.record.metrics] == list(range(EPOCHS))
        assert without_times(planned.record) == without_times(as_expected.record)
        assert not (planned.record.folder / "failure.txt").exists()
    with capsys.disabled():
        print(
            f"\n40 runs took {sessions} sessions and {len(starts)} starts, in which {worker_kills} workers and "
            f"{main_kills} main processes were killed, and {time.monotonic() - begin:.0f} s"
        )
