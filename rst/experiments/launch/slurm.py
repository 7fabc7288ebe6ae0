"""The runs of tables as jobs of a Slurm cluster, one job for each run, by submitit."""

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import submitit

from rst.experiments.errors import InputError, bad_input
from rst.experiments.files import write_atomically
from rst.experiments.runs.record import ENDED, Diverged, Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.tables.expansion import PlannedRun
from rst.experiments.training.loop import train
from rst.experiments.training.signals import Interrupted

MAX_TIME_LIMITS = 1000
"""How often one job may reach its time limit and be queued again."""


def submit(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """Queue the runs that are neither done nor queued, as one array of jobs; run id -> Slurm's job id.

    A job that nears its time limit writes a checkpoint after the next step, and is queued again.

    Raises:
        InputError: there is no Slurm here, or it refuses the jobs.
    """
    queued = _queued_ids()
    missing = [run for run in runs if run.record.status not in ENDED and _slurm_id(run.record) not in queued]
    if not missing:
        return {}
    spec = missing[0].spec
    parameters = {key: value for key, value in spec.slurm.options.items() if value is not None}
    folder = Path(spec.paths.runs).resolve().parent / "slurm"
    with bad_input("slurm: "):
        executor = submitit.SlurmExecutor(folder, max_num_timeout=MAX_TIME_LIMITS)
        executor.update_parameters(job_name="rst", **parameters)
        try:
            ids = [submitted.job_id for submitted in executor.map_array(_Training(), [run.spec for run in missing])]
        except submitit.core.utils.FailedJobError as error:
            raise InputError(f"slurm: {str(error).strip().splitlines()[-1]}") from error
    for run, job_id in zip(missing, ids, strict=True):
        run.record.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(run.record.folder / "slurm.txt", job_id)
    return {run.record.id: job_id for run, job_id in zip(missing, ids, strict=True)}


class _Training:
    """The training of a run, as a job."""

    def __call__(self, spec: RunSpec) -> None:
        record = open_record(spec)
        self._link_logs(record)
        try:
            train(spec, show_progress=False)
        except Interrupted as stop:
            # The checkpoint is written, and submitit's own handler is in place again: it queues the job anew.
            signal.raise_signal(stop.signal_number)
            raise
        except Diverged:
            return  # This is an outcome, which the record has.
        except Exception as error:
            record.fail(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
            raise

    def checkpoint(self, spec: RunSpec) -> submitit.helpers.DelayedSubmission:
        """What submitit puts into the queue when the job is interrupted: the same job, which then goes on."""
        return submitit.helpers.DelayedSubmission(self, spec)

    @staticmethod
    def _link_logs(record: Record) -> None:
        paths = submitit.JobEnvironment().paths
        record.folder.mkdir(parents=True, exist_ok=True)
        for name, file in (("slurm.out", paths.stdout), ("slurm.err", paths.stderr)):
            link = record.folder / name
            link.unlink(missing_ok=True)
            link.symlink_to(file)


def _slurm_id(record: Record) -> str | None:
    file = record.folder / "slurm.txt"
    return file.read_text() if file.exists() else None


def _queued_ids() -> set[str]:
    """The ids of the jobs that wait or run; those of an array are ``<array>_<task>``."""
    try:
        listing = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%F_%K"], capture_output=True, text=True, check=True
        )
    except FileNotFoundError as error:
        raise InputError(
            "there is no Slurm here (no squeue): go to a login node, or leave --launcher slurm out."
        ) from error
    except subprocess.CalledProcessError as error:
        raise InputError(f"slurm: {error.stderr.strip()}") from error
    return set(listing.stdout.split())
