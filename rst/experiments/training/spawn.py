"""Starting the ranks of a run on this host, and ending them together."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rst.experiments.errors import InputError
from rst.experiments.runs.record import Diverged, Locked
from rst.experiments.training.signals import Interrupted, stop_requests

START_METHOD = "spawn"

T = TypeVar("T")


def spawn(function: Callable[..., T], count: int, *arguments: Any) -> T:
    """Call a function on ``count`` new ranks of this host, by torch's elastic launcher; return what the first returns.

    A request to stop is passed on to the ranks, which stop together. Only the output of the first rank is shown.

    Raises:
        Interrupted: the ranks were asked to stop.
        Diverged: the loss is no longer finite.
        Locked: another process trains the run.
        InputError: a rank failed; the sentence is that of the rank that failed first.
    """
    requests: list[int] = []
    others = set(multiprocessing.active_children())

    def pass_on(number: int) -> None:
        requests.append(number)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()

    threads = max(1, torch.get_num_threads() // count)
    with TemporaryDirectory() as folder, stop_requests(pass_on):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            start_method=START_METHOD,
            logs_specs=DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(1, count), Std.ALL)),
            signals_to_handle="",  # The launcher's own handler would kill the ranks after 30 seconds.
        )
        logging.disable()  # The launcher would log at length what is raised below as one sentence.
        try:
            outcome = elastic_launch(config, _on_rank)(function, threads, arguments)[0]
        except ChildFailedError as error:
            if requests:
                raise Interrupted("stopped; the same command goes on from the last checkpoint.", requests[0]) from None
            rank, failure = error.get_first_failure()
            if rank == 0 and failure.exitcode < 0:
                print(file=sys.stderr)  # The first rank was killed, and cannot end the line of its bar any more.
            raise _reason(rank, failure, count) from None
        finally:
            logging.disable(logging.NOTSET)
    if isinstance(outcome, Interrupted):
        raise Interrupted(str(outcome), requests[0] if requests else outcome.signal_number)
    if isinstance(outcome, (Diverged, Locked)):
        raise type(outcome)(str(outcome))
    return outcome


def _on_rank(function: Callable[..., T], threads: int, arguments: Sequence[Any]) -> T | Interrupted | Diverged | Locked:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # To the launcher, a rank that KeyboardInterrupt ends has succeeded.
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        return function(*arguments)
    except (Interrupted, Diverged, Locked) as outcome:  # All ranks end so together, and none of them has failed.
        return outcome


def _reason(rank: int, failure: ProcessFailure, count: int) -> Exception:
    """Why a rank failed: the error that it reported to the launcher, or how its process ended."""
    message: Any = failure.message
    if isinstance(message, dict):
        kind, _, sentence = message["message"].partition(": ")
        if kind == InputError.__name__:
            return InputError(sentence)
        return RuntimeError(f"rank {rank} of {count} failed.\n{message['extraInfo']['py_callstack']}")
    how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"exited with {failure.exitcode}"
    return InputError(f"rank {rank} of {count} {how}: the same command goes on from the last checkpoint.")


def end_with_parent() -> None:
    """Wait, in a thread, until the process that started this one dies; then stop the run, and end within a minute."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    os._exit(1)
