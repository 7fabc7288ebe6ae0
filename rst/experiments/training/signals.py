"""How a person or a cluster stops a run: between two steps, with a checkpoint, at the same step on all ranks."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rst.experiments.training.ranks import World

ONE_REQUEST = 1.0
"""Signals within so many seconds are one request: Ctrl-C comes from the terminal and from the launcher too."""


class Interrupted(Exception):
    """A signal stopped the run between two steps; its checkpoint is written."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)  # Pickle passes these on to another process.
        self.signal_number = signal_number

    def __str__(self) -> str:
        return self.args[0]


@contextmanager
def stop_requests(act: Callable[[int], None]) -> Iterator[None]:
    """Inside, the first SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 calls ``act(number)``; a second one ends the process.

    Slurm announces its time limit by SIGUSR1 or SIGUSR2. Only a main thread can do this; in others nothing changes.
    """
    first: float | None = None

    def handle(number: int, frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            act(number)
        elif now - first >= ONE_REQUEST:
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


class StopPoll:
    """Decides after which steps a run looks up from its work, so that all ranks look after the same step.

    A run looks whether a stop was requested and whether the loss is still finite. One rank alone sees a request at
    once, and looks at the loss, which waits for the device, every 2 seconds. Several ranks look after as many steps as
    the slowest of them makes in 2 seconds, counted anew each time. That takes three messages of one or two numbers,
    about 0.1 ms each on one host.
    """

    SECONDS = 2.0

    def __init__(self, world: World, step: int) -> None:
        self.world = world
        self.requests: list[int] = []
        self._step, self._time = step, time.monotonic()
        self._due = step + 1

    @property
    def request(self) -> int:
        """The number of the signal that asked this rank to stop, or 0."""
        return self.requests[0] if self.requests else 0

    def is_due(self, step: int) -> bool:
        """Whether the run looks after this step."""
        if self.world.size == 1:
            return self.request > 0 or time.monotonic() >= self._time + self.SECONDS
        return step >= self._due

    def look(self, step: int) -> int:
        """The number of the signal that asked any rank to stop, or 0. All ranks call this after the same step."""
        now = time.monotonic()
        steps = max(1, int(self.SECONDS * (step - self._step) / max(now - self._time, 1e-6)))
        signal_number, fewest = self.world.max(self.request, -steps)
        self._step, self._time, self._due = step, now, step - int(fewest)
        return int(signal_number)
