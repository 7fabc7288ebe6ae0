"""The runs of tables on this machine, several at a time."""

import json
import os
import signal
import sys
import threading
import time
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import active_children, get_context

import torch
from tqdm import tqdm

from rst.experiments.data.image_folders import is_there
from rst.experiments.data.run_data import RunData, in_folders, open_images
from rst.experiments.devices import available_cores, check_devices
from rst.experiments.errors import InputError
from rst.experiments.runs.record import ENDED, STATUSES, Diverged, Locked, Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.tables.expansion import PlannedRun
from rst.experiments.training.loop import train
from rst.experiments.training.signals import Interrupted, stop_requests
from rst.experiments.training.spawn import end_with_parent

SECONDS_BETWEEN_LOOKS = 1.0
"""How often the sweep looks at the progress of its runs, and at the runs of other processes."""


def run(runs: Sequence[PlannedRun], workers: int | None = None) -> list[str]:
    """Train the runs that are not done, each in one of ``workers`` processes; return one sentence for each failure.

    By default there are as many workers as GPUs, or as cores where there is no GPU. GPUs are shared out among the
    workers. A run that fails does not stop the others. A run that another process trains is left to it and waited for.

    Raises:
        Interrupted: a signal asked to stop; the runs at work have written their checkpoints.
    """
    devices, gpu_places = _places(runs)
    sweep = _Sweep(runs, workers or default_workers(runs), gpu_places, devices)
    requests: list[int] = []
    with stop_requests(requests.append):
        try:
            while sweep.go_on() and not requests:
                pass
        finally:
            if requests:
                for worker in active_children():
                    worker.terminate()  # On SIGTERM a run writes its checkpoint.
            sweep.close()
    if requests:
        raise Interrupted("stopped; the same command goes on from here.", requests[0])
    return sweep.failures


def check(runs: Sequence[PlannedRun]) -> None:
    """Look once at the devices and at the images of the runs. For runs that are done neither needs to be here.

    Raises:
        InputError: a device or the images of a data set are missing, so that each of its runs would fail; or a run
            that is done was trained on other images than those that are here.
    """
    left: dict[str, list[PlannedRun]] = defaultdict(list)
    ended: dict[str, list[PlannedRun]] = defaultdict(list)
    for planned in runs:
        spec = planned.spec
        needs = [spec.dataset.model_dump(mode="json"), spec.paths.model_dump(), spec.device, spec.devices]
        (ended if planned.record.status in ENDED else left)[json.dumps(needs)].append(planned)
    for first, *_ in left.values():
        check_devices(first.spec)
        RunData(first.spec, torch.device("cpu"))
    for group in ended.values():
        spec = group[0].spec
        if in_folders(spec) and is_there(spec.dataset.name, spec.dataset.root):
            digest = open_images(spec).digest
            for planned in group:
                planned.record.refuse_other_images(digest)


def default_workers(runs: Sequence[PlannedRun]) -> int:
    """How many runs this machine trains at a time: as many as it has GPUs or, without a GPU, cores for."""
    devices, gpu_places = _places(runs)
    return gpu_places or max(1, available_cores() // devices)


def _places(runs: Sequence[PlannedRun]) -> tuple[int, int]:
    """How many devices the largest of the runs takes, and for how many such runs there are GPUs here."""
    devices = max((planned.spec.devices for planned in runs), default=1)
    on_gpus = any(planned.spec.device in ("auto", "cuda") for planned in runs)
    return devices, torch.cuda.device_count() // devices if on_gpus else 0


class _Sweep:
    """Which runs wait, which are at work, and the bar that shows it in passes, since runs differ so much in length."""

    def __init__(self, runs: Sequence[PlannedRun], workers: int, gpu_places: int, devices: int) -> None:
        status = {planned.record.id: planned.record.status for planned in runs}
        counts = Counter(status.values())
        print(f"{len(runs)} runs: " + ", ".join(f"{counts[name]} {name}" for name in STATUSES), flush=True)

        todo = [planned for planned in runs if status[planned.record.id] not in ENDED]
        # The runs of seed 0 come first, then those of seed 1: a machine that slows down then slows all rows of a table
        # alike, so that their times can still be compared.
        self.queue = deque(sorted(todo, key=lambda planned: planned.spec.seed))
        self.running: dict[Future[str | None], tuple[int, PlannedRun]] = {}
        self.failures: list[str] = []
        # Every worker is a pool of its own, because a process that is killed breaks the whole pool that it belongs to.
        threads = max(1, torch.get_num_threads() // workers)
        self.settings = [
            (threads, _visible_gpus(worker % gpu_places, devices) if gpu_places else None) for worker in range(workers)
        ]
        self.pools = [_pool(*settings) for settings in self.settings]

        self.count, self.ended, self.said_that_it_waits = len(runs), sum(counts[name] for name in ENDED), False
        self.work = {planned.record.id: planned.spec.expected_passes for planned in todo}
        self.passes = {planned.record.id: planned.record.propagations for planned in todo}
        self.bar = _bar(sum(self.passes.values()), sum(self.work.values()))
        for planned in runs:
            if status[planned.record.id] == "done":
                try:
                    _ = planned.record.summary
                except InputError as error:  # It is damaged, or of an older version: no table could be made of it.
                    self._fail(planned, str(error))

    def go_on(self) -> bool:
        """Work until a run ends or a look is due; whether some runs are neither done nor failed yet."""
        self._start()
        if self.running:
            for future in wait(self.running, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED).done:
                self._collect(future)
        elif self.queue:
            if not self.said_that_it_waits:
                self.bar.write(f"waits for {len(self.queue)} runs of another process")
            self.said_that_it_waits = True
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self._show()
        return bool(self.running or self.queue)

    def close(self) -> None:
        """Wait for the workers, and leave the bar as it stands."""
        for pool in self.pools:
            pool.shutdown(cancel_futures=True)
        self.bar.close()

    def _start(self) -> None:
        """Give each idle worker one run. A worker never gets a second one in advance: it could not give that back."""
        for worker in set(range(len(self.pools))) - {worker for worker, _ in self.running.values()}:
            planned = self._next()
            if planned is None:
                return
            try:
                future = self.pools[worker].submit(_train, planned.spec)
            except BrokenProcessPool:
                self.pools[worker] = _pool(*self.settings[worker])
                future = self.pools[worker].submit(_train, planned.spec)
            self.running[future] = worker, planned

    def _next(self) -> PlannedRun | None:
        """The next run that no other process trains. Runs of others go to the end: they are free if the other dies."""
        for _ in range(len(self.queue)):
            planned = self.queue.popleft()
            status = planned.record.status
            if status in ENDED:
                self._finish(planned)
            elif status == "running":
                self.queue.append(planned)
            else:
                return planned
        return None

    def _collect(self, future: Future[str | None]) -> None:
        _, planned = self.running.pop(future)
        error = future.exception()
        if isinstance(error, Locked):
            self.queue.append(planned)
        elif error is None and (sentence := future.result()):
            self._fail(planned, sentence)
        elif planned.record.status in ENDED:  # So it is also where the worker was killed between that and its answer.
            self._finish(planned)
        else:
            self._fail(planned, _kept(planned.record, f"its worker ended: {error}"))

    def _finish(self, planned: PlannedRun) -> None:
        self.ended += 1
        if planned.record.diverged:
            self.bar.write(f"{_label(planned)}: {planned.record.divergence}")
        self.passes[planned.record.id] = self.work[planned.record.id]

    def _fail(self, planned: PlannedRun, sentence: str) -> None:
        self.failures.append(f"{_label(planned)}: {sentence}")
        self.bar.write(f"failed: {self.failures[-1]}")
        # The bar must be able to reach its end, and the work that is left of a failed run is not going to be done.
        self.work[planned.record.id] = self.passes.setdefault(planned.record.id, 0.0)

    def _show(self) -> None:
        at_work = [planned for _, planned in self.running.values()]
        if len(at_work) < len(self.pools):  # A worker is idle only while other processes have all runs that are left.
            at_work += self.queue
        for planned in at_work:
            self.passes[planned.record.id] = min(planned.record.propagations, self.work[planned.record.id])
        self.bar.total = sum(self.work.values())
        failed = f", {len(self.failures)} failed" if self.failures else ""
        self.bar.set_postfix_str(f"{self.ended}/{self.count} runs{failed}", refresh=False)
        self.bar.update(sum(self.passes.values()) - self.bar.n)


def _bar(passes: float, work: float) -> tqdm:
    """The bar of a sweep that has done so many passes of so many."""
    return tqdm(
        total=work,
        initial=passes,
        bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} passes [{elapsed}<{remaining}{postfix}]",
        unit_scale=True,
        smoothing=0,
        disable=not work,
        dynamic_ncols=True,
        miniters=0,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )


def _label(planned: PlannedRun) -> str:
    """Where in the tables a run stands, and its id."""
    wandb = planned.spec.wandb
    return f"{wandb.group}: {wandb.job_type}, seed {planned.spec.seed} ({planned.record.id})"


def _visible_gpus(place: int, devices: int) -> str:
    """CUDA_VISIBLE_DEVICES for the runs in a place: each place has ``devices`` of the GPUs that this process sees."""
    own = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return ",".join(own.split(",")[place * devices : (place + 1) * devices])


def _pool(threads: int, gpus: str | None) -> ProcessPoolExecutor:
    """A pool of one process, which trains run after run, so that Python and torch start once."""
    return ProcessPoolExecutor(1, get_context("spawn"), _set_up_worker, (threads, gpus))


def _set_up_worker(threads: int, gpus: str | None) -> None:
    torch.set_num_threads(threads)
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # This must come before the process asks CUDA for anything.
    warnings.simplefilter("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"  # For the ranks of a run on several devices.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches workers too; it ends a run, but not its worker.
    threading.Thread(target=end_with_parent, daemon=True).start()


def _train(spec: RunSpec) -> str | None:
    """Train one run in a worker; return why it failed, if it did. Raises `Locked` where another process trains it."""
    try:
        train(spec, show_progress=False)
    except Locked:
        raise
    except Diverged:  # This is an outcome, which the record has.
        return None
    except Interrupted as stop:  # The run is half done, which is not a failure to keep.
        return str(stop)
    except InputError as error:
        return _kept(open_record(spec), str(error))
    except Exception as error:  # A bug or a full disk of one run must not end the others.
        return _kept(open_record(spec), f"{type(error).__name__}: {error}")
    return None


def _kept(record: Record, failure: str) -> str:
    """The failure, which is also written to the record where that is possible."""
    with suppress(InputError, OSError):
        record.fail(failure)
    return failure
