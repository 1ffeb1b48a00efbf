"""Events for requests that had to be made again: at once, and then few enough that a bad hour stays readable."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

EVERY_S = 60.0  # between two events


class RetryEvents:
    """Is told of every repeated request, from whatever thread; passes on the first, and then one a minute at most."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._told: float | None = None
        self._untold = 0

    def __call__(self, what: str) -> None:
        with self._lock:
            now = self._clock()
            if self._told is not None and now - self._told < EVERY_S:
                self._untold += 1
                return
            others, self._told, self._untold = self._untold, now, 0
        more = f"; {others} more since the last such line" if others else ""
        with suppress(OSError):  # a line that cannot be written is no reason to give up a download
            self._write(what + more)
