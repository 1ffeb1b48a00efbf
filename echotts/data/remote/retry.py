"""Retries after temporary failures (429, 5xx, connection errors) with randomised exponential backoff and a deadline.

If the server asks to wait, all threads wait that long.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from echotts.data.remote.web import TRANSPORT_ERRORS, Unavailable
from echotts.gcs import first_line

logger = logging.getLogger(__name__)

TOO_MANY = 429

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Timing of retries, in seconds."""

    deadline_s: float = 600.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    silence_s: float = 60.0  # a connection without data for this long is considered dead


class Stopped(Exception):
    """The program is stopping; the file itself may be fine."""


class Retries:
    """Waits before retries, shared by all threads of a fetcher; `count` is the number of retries.

    `listener` is called with one line for each retry, in the thread that waits.
    """

    def __init__(self, policy: RetryPolicy, stopping: threading.Event | None = None) -> None:
        self.policy = policy
        self.stopping = stopping or threading.Event()
        self.count = 0
        self.listener: Callable[[str], None] | None = None
        self._quiet_until = 0.0

    def start(self, what: str) -> "Attempt":
        return Attempt(self, what)

    def hold(self, seconds: float) -> None:
        """Lets no thread send a request for so many seconds."""
        self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)

    def wait(self, seconds: float) -> None:
        """Waits, longer if a server asked for it. Raises Stopped."""
        until = max(time.monotonic() + seconds, self._quiet_until)
        while (left := until - time.monotonic()) > 0:
            if self.stopping.wait(left):
                break
            until = max(until, self._quiet_until)
        if self.stopping.is_set():
            raise Stopped


class Attempt:
    """Repeated requests for one thing until a deadline."""

    def __init__(self, retries: Retries, what: str) -> None:
        self._retries = retries
        self._what = what
        self._wait_s = retries.policy.first_wait_s
        self._deadline = time.monotonic() + retries.policy.deadline_s

    def extend(self, seconds: float) -> None:
        """Extends the deadline, for large files."""
        self._deadline += seconds

    def check(self) -> None:
        """Raises Unavailable after the deadline."""
        if time.monotonic() > self._deadline:
            raise Unavailable(f"{self._what}: did not arrive within the deadline")

    def ready(self) -> None:
        """To be called before each request; waits if a server asked for it."""
        self._retries.wait(0.0)

    def again(self, error: BaseException, progress: bool = False) -> None:
        """Waits before the next request; raises Unavailable if a retry is pointless. `progress` resets the backoff."""
        asked_s = error.wait_s if isinstance(error, Unavailable) else 0.0
        if isinstance(error, Unavailable) and error.gone:
            raise error
        if progress:
            self._wait_s = self._retries.policy.first_wait_s
        wait_s = max(asked_s, self._wait_s * random.uniform(0.5, 1.0)) + 0.1 * asked_s * random.random()
        self._wait_s = min(2 * self._wait_s, self._retries.policy.longest_wait_s)
        left_s = self._deadline - time.monotonic()
        if wait_s > left_s:
            asked = f"; the server asked to wait {asked_s:.0f} s" if asked_s else ""
            raise Unavailable(f"{self._what}: given up: {first_line(error)}{asked}") from error
        self._retries.count += 1
        said = f"{self._what}: {first_line(error)}; retrying in {wait_s:.1f} s, for up to {left_s:.0f} s"
        logger.warning("%s", said)
        if self._retries.listener is not None:
            self._retries.listener(said)
        if isinstance(error, Unavailable) and error.status == TOO_MANY:
            self._retries.hold(wait_s)
        self._retries.wait(wait_s)


def retry(call: Callable[[], T], what: str, retries: Retries) -> T:
    """The result of `call`, retried on transport errors and on Unavailable unless that is permanent."""
    attempt = retries.start(what)
    while True:
        attempt.ready()
        try:
            return call()
        except FileNotFoundError:
            raise
        except TRANSPORT_ERRORS as error:
            attempt.again(error)
