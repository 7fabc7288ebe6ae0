"""What a person sees of a run while it trains."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

# By default processes share tqdm's lock, and one that is killed while it holds the lock would never release it.
tqdm.set_lock(threading.RLock())


class Progress:
    """A bar on a terminal, and a line every 30 seconds elsewhere. Figures are computed only when they are shown."""

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
        """Count one more step."""
        self._bar.update()
        if not self._bar.disable and time.monotonic() >= self._next:
            self._bar.set_postfix(figures())
            self._next = time.monotonic() + self._seconds

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
