"""What a job of Slurm answers, by the job itself; tests/slurm has the cluster around it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rst.experiments.errors import InputError
from rst.experiments.launch.slurm import _Training
from rst.experiments.runs.record import Record, open_record
from rst.experiments.spec import RunSpec

Config = Callable[..., RunSpec]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[RunSpec], Record]:
    """Do what a job does, in the environment that submitit gives it; the record of its run."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "7")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path / "slurm"))

    def run(spec: RunSpec) -> Record:
        assert _Training()(spec) is None
        return open_record(spec)

    return run


def test_a_run_that_diverges_is_a_job_that_ends_well(config: Config, job: Callable[[RunSpec], Record]) -> None:
    record = job(config("optimizer.lr=1e30"))
    assert record.status == "diverged"
    assert not (record.folder / "failure.txt").exists()
    starts = record.starts
    assert job(config("optimizer.lr=1e30")).starts == starts  # It is not trained a second time.


def test_a_run_that_ends_is_done_and_links_to_the_logs_of_its_job(
    config: Config, job: Callable[[RunSpec], Record], tmp_path: Path
) -> None:
    record = job(config())
    assert record.status == "done"
    assert (record.folder / "slurm.out").readlink() == tmp_path / "slurm" / "7_0_log.out"


def test_a_run_with_bad_input_is_a_job_that_fails_and_says_why(
    config: Config, job: Callable[[RunSpec], Record]
) -> None:
    spec = config("dataset.train_images=5000")
    with pytest.raises(InputError, match=r"^dataset\.train_images=5000"):
        job(spec)
    assert open_record(spec).status == "failed"
    assert (open_record(spec).folder / "failure.txt").read_text().startswith("dataset.train_images=5000")
