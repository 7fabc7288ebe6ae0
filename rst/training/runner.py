"""The runs of a table, several at a time."""

import os
import signal
import threading
import time
import warnings
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import active_children, get_context, parent_process

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from rst.experiments.config import InputError
from rst.experiments.sweep import Cell, Table
from rst.training.loop import Interrupted, train


def run_table(table: Table, workers: int = 1) -> list[str]:
    """Train the runs that are missing, each in one of ``workers`` processes; the failures, one sentence each.

    A worker takes run after run, so that it starts Python and torch once. A run that fails does not stop the others.
    """
    missing = [cell for cell in table.cells if not cell.record.done]
    # Seed by seed, so that a machine that slows down slows all rows alike, and their times still compare.
    missing.sort(key=lambda cell: table.seeds.index(cell.cfg.seed))
    print(f"{table.name}: {len(table.cells)} runs, {len(table.cells) - len(missing)} done, {len(missing)} to train")
    failures = []
    queue, running = iter(missing), dict[Future[str | None], Cell]()
    pool = _workers(workers)
    try:
        with tqdm(total=len(missing), desc=table.name, unit="run") as bar:
            while True:
                # No more than can run at once: what a pool has taken in advance it cannot give back.
                for cell in islice(queue, workers - len(running)):
                    try:
                        run = pool.submit(_train, cell.cfg)
                    except BrokenProcessPool:  # a worker was killed, and took the pool with it
                        pool = _workers(workers)
                        run = pool.submit(_train, cell.cfg)
                    running[run] = cell
                if not running:
                    break
                for run in wait(running, return_when=FIRST_COMPLETED).done:
                    cell = running.pop(run)
                    failure = run.result() if run.exception() is None else f"its worker ended: {run.exception()}"
                    if failure is not None:
                        failures.append(f"{cell.row}, seed {cell.cfg.seed}: {failure}")
                        bar.write(failures[-1])
                    bar.update()
    except KeyboardInterrupt:
        failures.append("stopped; the same command goes on from here")
        for worker in active_children():
            worker.terminate()  # SIGTERM, on which a run writes its checkpoint
    finally:
        pool.shutdown(cancel_futures=True)
    return failures


def _workers(count: int) -> ProcessPoolExecutor:
    threads = max(1, torch.get_num_threads() // count)
    return ProcessPoolExecutor(count, get_context("spawn"), _set_up_worker, (threads,))


def _set_up_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches workers too, and ends a run, but not its worker
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A runner that is killed takes its workers with it, each with a checkpoint, instead of leaving them for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    while True:  # the first stops a run, the next one the worker
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)


def _train(cfg: DictConfig) -> str | None:
    """Train one run in a worker; what went wrong, if anything."""
    try:
        train(cfg, show_progress=False)
    except (InputError, Interrupted) as error:
        return str(error)
    except Exception as error:  # one run's bug or full disk must not end the others
        return f"{type(error).__name__}: {error}"
    return None
