"""The runs of a table as jobs of a real Slurm cluster of one node."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from demo_runs import TINY

from rst.experiments.runs.record import Record
from rst.experiments.tables.expansion import load_table

from .conftest import slurm, until

pytestmark = pytest.mark.slurm

SMALL = [*TINY, "max_seeds=1"]
JOB = ["slurm.cpus_per_task=1", "slurm.gpus_per_node=null"]


def sweep(runs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``python scripts/sweep.py demo --launcher slurm``, with these words and the records in ``runs``."""
    command = [sys.executable, "scripts/sweep.py", "demo", "--launcher", "slurm", *words, *JOB, f"paths.runs={runs}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def records(runs: Path, *overrides: str) -> list[Record]:
    """The records of the four runs of the demo."""
    return [planned.record for planned in load_table("demo", [*overrides, f"paths.runs={runs}"]).runs]


def no_job_is_left() -> bool:
    """Whether Slurm has ended all jobs."""
    return slurm("squeue", "--noheader") == ""


def test_every_run_of_a_table_is_a_job_whose_log_is_beside_its_record(runs: Path) -> None:
    queued = sweep(runs, *SMALL)
    assert (queued.returncode, queued.stderr) == (0, "")
    assert "4 runs queued" in queued.stdout
    until(no_job_is_left, seconds=120)
    for record in records(runs, *SMALL):
        assert record.status == "done"
        assert "submitit" in (record.folder / "slurm.err").read_text() + (record.folder / "slurm.out").read_text()
    assert "0 runs queued" in sweep(runs, *SMALL).stdout


def test_a_run_that_is_queued_is_not_queued_twice(runs: Path) -> None:
    long = ["recipe.epochs=2000", "max_seeds=1", "device=cpu"]
    assert "4 runs queued" in sweep(runs, *long).stdout
    assert "0 runs queued" in sweep(runs, *long).stdout
    slurm("scancel", "--user=root")
    until(no_job_is_left, seconds=60)


def near_the_limit(job: str) -> None:
    """Send the signal by which Slurm announces the end of the time limit."""
    slurm("scancel", "--signal=USR2", job)


def preempt(job: str) -> None:
    """Queue a more urgent job that needs the whole node."""
    slurm("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")


@pytest.mark.parametrize("stop", [near_the_limit, preempt])
def test_a_job_that_slurm_stops_is_queued_again_and_goes_on_where_it_was(runs: Path, stop: Callable) -> None:
    long = [*SMALL, "recipe.epochs=150"]
    sweep(runs, *long)
    first, *others = records(runs, *long)
    until(lambda: len(first.metrics) > 2, seconds=120)
    slurm("scancel", *((record.folder / "slurm.txt").read_text() for record in others))
    job = (first.folder / "slurm.txt").read_text()
    stop(job)
    until(lambda: "PENDING" in slurm("squeue", "--noheader", "--format=%T", f"--jobs={job}"), seconds=60)
    before = first.metrics
    assert first.checkpoint.exists()
    assert 2 < len(before) < 150
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm itself would wait for two minutes.
    until(no_job_is_left, seconds=300)
    assert first.status == "done"
    assert [line["epoch"] for line in first.metrics] == list(range(150))
    assert first.metrics[: len(before)] == before


def test_a_job_that_slurm_refuses_is_answered_by_one_sentence_after_slurms_own_lines(runs: Path) -> None:
    refused = sweep(runs, *SMALL, "slurm.partition=nowhere")
    assert refused.returncode == 1
    *of_slurm, sentence = refused.stderr.splitlines()
    assert all(line.startswith("sbatch: error: ") for line in of_slurm)
    assert sentence.startswith("sweep.py: slurm: sbatch: error: ")


def test_a_run_that_fails_in_its_job_is_listed_as_failed(runs: Path) -> None:
    wrong = [*SMALL, "dataset.train_images=5000"]  # There are not so many; only the job, which opens them, can know.
    sweep(runs, *wrong)
    until(no_job_is_left, seconds=120)
    assert [record.status for record in records(runs, *wrong)] == ["failed"] * 4
