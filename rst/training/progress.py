"""What a person sees of a run, and how they stop it."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


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


@contextmanager
def stop_requests() -> Iterator[Callable[[], int | None]]:
    """A function that gives the signal (SIGINT, SIGTERM) which asked to stop, or None. A second one ends at once."""
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before: dict[int, Any] = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
