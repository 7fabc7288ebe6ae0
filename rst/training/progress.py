"""What a person sees of a run, and how they stop it."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

tqdm.set_lock(threading.RLock())  # tqdm's own is shared by processes, and one that is killed would leave it behind


class Progress:
    """A bar on a terminal, now and then a line elsewhere; the figures are computed only when they are shown."""

    def __init__(self, total: int, done: int, description: str, shown: bool) -> None:
        self._seconds = 0.5 if sys.stderr.isatty() else 30.0
        self._next = time.monotonic() + self._seconds
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=description,
            unit="step",
            disable=not shown,
            dynamic_ncols=True,
            mininterval=self._seconds,
        )

    def step(self, figures: Callable[[], dict[str, Any]]) -> None:
        """One more step is done."""
        self._bar.update()
        if not self._bar.disable and time.monotonic() >= self._next:
            self._bar.set_postfix(figures())
            self._next = time.monotonic() + self._seconds

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


class Interrupted(Exception):
    """A signal stopped the run between two steps; its checkpoint is written."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)  # all that pickle needs, for the way to another process
        self.signal_number = signal_number

    def __str__(self) -> str:
        return self.args[0]


SAME_REQUEST = 1.0
"""Seconds within which several signals are one request: Ctrl-C comes from the terminal and from the launcher too."""


@contextmanager
def stop_requests(act: Callable[[int], None]) -> Iterator[None]:
    """Inside, a signal that asks to stop (SIGINT, SIGTERM, Slurm's SIGUSR1 or SIGUSR2) calls ``act(number)``; a second
    one ends the process at once.
    """
    first: float | None = None

    def handle(number: int, frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            act(number)
        elif now - first >= SAME_REQUEST:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    main = threading.current_thread() is threading.main_thread()
    before: dict[int, Any] = {number: signal.signal(number, handle) for number in numbers if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
