"""The runs of tables, several at a time."""

import os
import signal
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import active_children, get_context

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from rst.experiments.config import InputError
from rst.experiments.estimate import expected_passes
from rst.experiments.record import STATUSES, Locked, Record, open_record
from rst.experiments.sweep import Job
from rst.training.distributed import end_with_parent
from rst.training.loop import train
from rst.training.progress import Interrupted, stop_requests

SECONDS_BETWEEN_LOOKS = 1.0
"""Between two looks at how far the runs are, and at what other processes have left."""


def run(jobs: Sequence[Job], workers: int | None = None) -> list[str]:
    """Train the runs that are not done, each in one of ``workers`` processes; the failures, one sentence each.

    By default there are as many workers as GPUs, or as cores where there is no GPU; GPUs are shared out among them.
    A run that fails does not stop the others. A run that another process trains is left to it, and waited for.
    Raises `Interrupted` after a signal that asks to stop, when the runs at work have written their checkpoints.
    """
    devices = max((job.cfg.devices for job in jobs), default=1)  # of a run
    gpus = torch.cuda.device_count() // devices if any(job.cfg.device in ("auto", "cuda") for job in jobs) else 0
    sweep = _Sweep(jobs, workers or gpus or max(1, (os.cpu_count() or 1) // devices), gpus, devices)
    requests: list[int] = []
    with stop_requests(requests.append):
        try:
            while sweep.go_on() and not requests:
                pass
        finally:
            if requests:
                for worker in active_children():
                    worker.terminate()  # SIGTERM, on which a run writes its checkpoint
            sweep.close()
    if requests:
        raise Interrupted("stopped; the same command goes on from here.", requests[0])
    return sweep.failures


class _Sweep:
    """Which runs wait, which are at work, and the line that shows it: in passes, as runs differ so much in length."""

    def __init__(self, jobs: Sequence[Job], workers: int, gpus: int, devices: int) -> None:
        status = {job.record.id: job.record.status for job in jobs}
        counts = Counter(status.values())
        print(f"{len(jobs)} runs: " + ", ".join(f"{counts[name]} {name}" for name in STATUSES), flush=True)

        todo = [job for job in jobs if status[job.record.id] != "done"]
        # Seed by seed, so that a machine that slows down slows all rows alike, and their times still compare.
        self.queue = deque(sorted(todo, key=lambda job: job.cfg.seed))
        self.running: dict[Future[str | None], tuple[int, Job]] = {}
        self.failures: list[str] = []
        # One pool a worker: a process that is killed takes its pool with it.
        threads = max(1, torch.get_num_threads() // workers)
        self.settings = [(threads, _visible(worker % gpus, devices) if gpus else None) for worker in range(workers)]
        self.pools = [_pool(*settings) for settings in self.settings]

        self.runs, self.done, self.told = len(jobs), counts["done"], False
        self.work = {job.record.id: expected_passes(job.cfg) for job in todo}
        self.passes = {job.record.id: job.record.propagations for job in todo}
        self.bar = tqdm(
            total=sum(self.work.values()),
            initial=sum(self.passes.values()),
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} passes [{elapsed}<{remaining}{postfix}]",
            unit_scale=True,
            smoothing=0,
            disable=not todo,
            dynamic_ncols=True,
            miniters=0,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )
        for job in jobs:
            if status[job.record.id] == "done":
                try:
                    _ = job.record.summary
                except InputError as error:
                    self._fail(job, str(error))

    def go_on(self) -> bool:
        """Until a run ends, or a look is due; whether some are not yet done or failed, here or in another process."""
        self._start()
        if self.running:
            for future in wait(self.running, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED).done:
                self._collect(future)
        elif self.queue:
            if not self.told:
                self.bar.write(f"waits for {len(self.queue)} runs of another process")
            self.told = True
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self._show()
        return bool(self.running or self.queue)

    def close(self) -> None:
        """Wait for the workers, and leave the line as it stands."""
        for pool in self.pools:
            pool.shutdown(cancel_futures=True)
        self.bar.close()

    def _start(self) -> None:
        """Give each idle worker one run: what a pool has taken in advance it cannot give back."""
        for worker in set(range(len(self.pools))) - {worker for worker, _ in self.running.values()}:
            job = self._next()
            if job is None:
                return
            try:
                future = self.pools[worker].submit(_train, job.cfg)
            except BrokenProcessPool:
                self.pools[worker] = _pool(*self.settings[worker])
                future = self.pools[worker].submit(_train, job.cfg)
            self.running[future] = worker, job

    def _next(self) -> Job | None:
        """The next run that no other process trains: those are put last, and are free once the other has died."""
        for _ in range(len(self.queue)):
            job = self.queue.popleft()
            status = job.record.status
            if status == "done":
                self._finish(job)
            elif status == "running":
                self.queue.append(job)
            else:
                return job
        return None

    def _collect(self, future: Future[str | None]) -> None:
        _, job = self.running.pop(future)
        error = future.exception()
        if isinstance(error, Locked):
            self.queue.append(job)
        elif error is not None:
            self._fail(job, _kept(job.record, f"its worker ended: {error}"))
        elif sentence := future.result():
            self._fail(job, sentence)
        else:
            self._finish(job)

    def _finish(self, job: Job) -> None:
        self.done += 1
        self.passes[job.record.id] = self.work[job.record.id]

    def _fail(self, job: Job, sentence: str) -> None:
        wandb = job.cfg.wandb
        self.failures.append(f"{wandb.group}: {wandb.job_type}, seed {job.cfg.seed} ({job.record.id}): {sentence}")
        self.bar.write(f"failed: {self.failures[-1]}")
        self.work[job.record.id] = self.passes.setdefault(job.record.id, 0.0)  # the rest is no more to be done

    def _show(self) -> None:
        at_work = [job for _, job in self.running.values()]
        if len(at_work) < len(self.pools):  # so those that are left are at work elsewhere
            at_work += self.queue
        for job in at_work:
            self.passes[job.record.id] = min(job.record.propagations, self.work[job.record.id])
        self.bar.total = sum(self.work.values())
        failed = f", {len(self.failures)} failed" if self.failures else ""
        self.bar.set_postfix_str(f"{self.done}/{self.runs} runs{failed}", refresh=False)
        self.bar.update(sum(self.passes.values()) - self.bar.n)


def _visible(place: int, devices: int) -> str:
    """CUDA_VISIBLE_DEVICES of the runs in a place: the GPUs of this process, ``devices`` to each place."""
    own = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return ",".join(own.split(",")[place * devices : (place + 1) * devices])


def _pool(threads: int, gpus: str | None) -> ProcessPoolExecutor:
    """One worker, which takes run after run, so that it starts Python and torch once; its process starts with them."""
    return ProcessPoolExecutor(1, get_context("spawn"), _set_up_worker, (threads, gpus))


def _set_up_worker(threads: int, gpus: str | None) -> None:
    torch.set_num_threads(threads)
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # before this process asks CUDA for anything
    warnings.simplefilter("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"  # in the ranks of a run on several devices
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches workers too, and ends a run, but not its worker
    threading.Thread(target=end_with_parent, daemon=True).start()


def _train(cfg: DictConfig) -> str | None:
    """Train one run in a worker; what went wrong, if anything. Raises `Locked` where another process trains it."""
    try:
        train(cfg, show_progress=False)
    except Locked:
        raise
    except Interrupted as stop:  # half done, which is no failure to keep
        return str(stop)
    except InputError as error:
        return _kept(open_record(cfg), str(error))
    except Exception as error:  # one run's bug or full disk must not end the others
        return _kept(open_record(cfg), f"{type(error).__name__}: {error}")
    return None


def _kept(record: Record, failure: str) -> str:
    """The failure, which its record keeps where it can be written."""
    with suppress(InputError, OSError):
        record.fail(failure)
    return failure
