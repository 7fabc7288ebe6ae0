"""The runs of a table as jobs of a real Slurm cluster of one node."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rst.experiments.sweep import Job, load_table

from .conftest import slurm, until

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
SMALL = ["recipe.epochs=1", "dataset.train_images=64", "dataset.test_images=50", "recipe.batch_size=32"]
SMALL += ["recipe.perturbation_batch=32", "max_seeds=1", "device=cpu"]
JOB = ["slurm.cpus_per_task=1", "slurm.gpus_per_node=null"]


def sweep(runs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/sweep.py", "demo", "--launcher", "slurm", *words, *JOB, f"paths.runs={runs}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def jobs(runs: Path, *overrides: str) -> list[Job]:
    return load_table("demo", [*overrides, f"paths.runs={runs}"]).jobs


def no_job_is_left() -> bool:
    return slurm("squeue", "--noheader") == ""


def test_every_run_of_a_table_is_a_job_whose_log_is_beside_its_record(runs: Path) -> None:
    queued = sweep(runs, *SMALL)
    assert (queued.returncode, queued.stderr) == (0, "")
    assert "4 runs queued" in queued.stdout
    until(no_job_is_left, seconds=120)
    for job in jobs(runs, *SMALL):
        assert job.record.status == "done"
        assert (
            "submitit" in (job.record.folder / "slurm.err").read_text() + (job.record.folder / "slurm.out").read_text()
        )
    assert "0 runs queued" in sweep(runs, *SMALL).stdout


def test_a_run_that_is_queued_is_not_queued_twice(runs: Path) -> None:
    long = ["recipe.epochs=2000", "max_seeds=1", "device=cpu"]
    assert "4 runs queued" in sweep(runs, *long).stdout
    assert "0 runs queued" in sweep(runs, *long).stdout
    slurm("scancel", "--user=root")
    until(no_job_is_left, seconds=60)


def near_the_limit(name: str) -> None:
    slurm("scancel", "--signal=USR2", name)


def preempt(name: str) -> None:
    """By a job that needs the whole node."""
    slurm("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")


@pytest.mark.parametrize("stop", [near_the_limit, preempt])
def test_a_job_that_slurm_stops_is_queued_again_and_goes_on_where_it_was(runs: Path, stop: Callable) -> None:
    long = [*SMALL, "recipe.epochs=150"]
    sweep(runs, *long)
    first, *others = (job.record for job in jobs(runs, *long))
    until(lambda: len(first.metrics) > 2, seconds=120)
    slurm("scancel", *((record.folder / "slurm.txt").read_text() for record in others))
    name = (first.folder / "slurm.txt").read_text()
    stop(name)
    until(lambda: "PENDING" in slurm("squeue", "--noheader", "--format=%T", f"--jobs={name}"), seconds=60)
    before = first.metrics
    assert first.checkpoint.exists()
    assert 2 < len(before) < 150
    slurm("scontrol", "update", f"JobId={name}", "StartTime=now")  # not in two minutes, as Slurm would
    until(no_job_is_left, seconds=300)
    assert first.status == "done"
    assert [line["epoch"] for line in first.metrics] == list(range(150))
    assert first.metrics[: len(before)] == before


def test_a_job_that_slurm_refuses_is_one_sentence_after_slurms_own_words(runs: Path) -> None:
    refused = sweep(runs, *SMALL, "slurm.partition=nowhere")
    assert refused.returncode == 1
    *slurms, ours = refused.stderr.splitlines()
    assert all(line.startswith("sbatch: error: ") for line in slurms)
    assert ours.startswith("sweep.py: slurm: sbatch: error: ")


def test_a_run_that_fails_in_its_job_is_listed_as_failed(runs: Path) -> None:
    wrong = [*SMALL, "dataset.train_images=5000"]  # more than there are; only the job can see that
    sweep(runs, *wrong)
    until(no_job_is_left, seconds=120)
    assert [job.record.status for job in jobs(runs, *wrong)] == ["failed"] * 4
