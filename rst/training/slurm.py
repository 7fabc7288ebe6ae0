"""The runs of tables as jobs of a Slurm cluster, one a run, by submitit."""

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import submitit
from omegaconf import DictConfig

from rst.experiments.config import InputError, bad_input
from rst.experiments.record import Record, open_record, write_atomically
from rst.experiments.sweep import Job
from rst.training.loop import train
from rst.training.progress import Interrupted

TIMES_OVER_THE_LIMIT = 1000
"""How often one job may reach its time limit and be queued again."""


def submit(jobs: Sequence[Job]) -> dict[str, str]:
    """Queue the runs that are neither done nor queued, as one array; run id -> Slurm's job id.

    ``cfg.slurm`` holds submitit's parameters of a job. A job that nears its time limit writes a checkpoint at the next
    step and is queued again. Raises `InputError` where Slurm is not there, or refuses.
    """
    queued = _queued_ids()
    missing = [job for job in jobs if not job.record.done and _slurm_id(job.record) not in queued]
    if not missing:
        return {}
    cfg = missing[0].cfg
    parameters = {str(key): value for key, value in cfg.slurm.items() if value is not None}
    folder = Path(cfg.paths.runs).resolve().parent / "slurm"
    with bad_input("slurm: "):
        executor = submitit.SlurmExecutor(folder, max_num_timeout=TIMES_OVER_THE_LIMIT)
        executor.update_parameters(job_name="rst", **parameters)
        try:
            ids = [submitted.job_id for submitted in executor.map_array(_Training(), [job.cfg for job in missing])]
        except submitit.core.utils.FailedJobError as error:
            raise InputError(f"slurm: {str(error).strip().splitlines()[-1]}") from error
    for job, job_id in zip(missing, ids, strict=True):
        job.record.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(job.record.folder / "slurm.txt", job_id)
    return {job.record.id: job_id for job, job_id in zip(missing, ids, strict=True)}


class _Training:
    """A run as a job."""

    def __call__(self, cfg: DictConfig) -> None:
        record = open_record(cfg)
        self._link_logs(record)
        try:
            train(cfg, show_progress=False)
        except Interrupted as stop:
            # The checkpoint is written, and submitit's own handler is back: it queues the job again.
            signal.raise_signal(stop.signal_number)
            raise
        except Exception as error:
            record.fail(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
            raise

    def checkpoint(self, cfg: DictConfig) -> submitit.helpers.DelayedSubmission:
        """What the job does when it is back from the queue: go on."""
        return submitit.helpers.DelayedSubmission(self, cfg)

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
    """Jobs that wait or run, tasks of arrays as ``<array>_<task>``."""
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
