"""Bytes of files elsewhere, whatever the scheme, and the policy that getting them takes.

`retry` tries a call again after what may pass (429, 5xx, connections that fail) with growing, random waits, or
those that the server asks for, until a deadline. Requests of all threads stand still while a server asks for that.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from echotts.data.remote import hub
from echotts.data.remote.sources import scheme_of
from echotts.data.remote.web import TRANSPORT_ERRORS, Body, Unavailable, WebBody

logger = logging.getLogger(__name__)

TOO_MANY = 429

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to try. Times in seconds."""

    deadline_s: float = 600.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    silence_s: float = 60.0  # without a byte a connection counts as dead


class Stopped(Exception):
    """The program wants to end: nothing is wrong with the file."""


class Retries:
    """The waits between tries, over all threads of one fetcher; `count` is how many there were.

    `listener` hears of each, in one line, in the thread that waits.
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
        """No thread asks before so many seconds have passed."""
        self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)

    def wait(self, seconds: float) -> None:
        """Waits, longer where a server wants quiet. Raises Stopped."""
        until = max(time.monotonic() + seconds, self._quiet_until)
        while (left := until - time.monotonic()) > 0:
            if self.stopping.wait(left):
                break
            until = max(until, self._quiet_until)
        if self.stopping.is_set():
            raise Stopped


class Attempt:
    """The tries at one thing, from now to a deadline."""

    def __init__(self, retries: Retries, what: str) -> None:
        self._retries = retries
        self._what = what
        self._wait_s = retries.policy.first_wait_s
        self._deadline = time.monotonic() + retries.policy.deadline_s

    def extend(self, seconds: float) -> None:
        """More time, for what is large."""
        self._deadline += seconds

    def check(self) -> None:
        """Raises Unavailable once the deadline has passed."""
        if time.monotonic() > self._deadline:
            raise Unavailable(f"{self._what}: not had within the deadline")

    def ready(self) -> None:
        """Before each request: waits where a server wants quiet."""
        self._retries.wait(0.0)

    def again(self, error: BaseException, progress: bool = False) -> None:
        """Waits before the next try; raises Unavailable where there is no use. `progress` begins with short waits."""
        asked_s = error.wait_s if isinstance(error, Unavailable) else 0.0
        if isinstance(error, Unavailable) and error.gone:
            raise error
        if progress:
            self._wait_s = self._retries.policy.first_wait_s
        wait_s = max(asked_s, self._wait_s * random.uniform(0.5, 1.0)) + 0.1 * asked_s * random.random()
        self._wait_s = min(2 * self._wait_s, self._retries.policy.longest_wait_s)
        left_s = self._deadline - time.monotonic()
        if wait_s > left_s:
            asked = f"; the server asks to wait {asked_s:.0f} s" if asked_s else ""
            raise Unavailable(f"{self._what}: given up: {describe(error)}{asked}") from error
        self._retries.count += 1
        said = f"{self._what}: {describe(error)}; again in {wait_s:.1f} s, for up to {left_s:.0f} s"
        logger.warning("%s", said)
        if self._retries.listener is not None:
            self._retries.listener(said)
        if isinstance(error, Unavailable) and error.status == TOO_MANY:
            self._retries.hold(wait_s)
        self._retries.wait(wait_s)


def retry(call: Callable[[], T], what: str, retries: Retries) -> T:
    """The result of `call`, tried again while it raises Unavailable that may pass, or a transport error."""
    tries = retries.start(what)
    while True:
        tries.ready()
        try:
            return call()
        except FileNotFoundError:
            raise
        except TRANSPORT_ERRORS as error:
            tries.again(error)


def describe(error: BaseException) -> str:
    """What an error says in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_remote(url: str, timeout_s: float, start: int = 0, end: int | None = None, version: str | None = None) -> Body:
    """The file at `url` from byte `start` on (before `end`). Raises Unavailable or one of TRANSPORT_ERRORS."""
    scheme = scheme_of(url)
    if scheme == hub.SCHEME:
        where, headers = hub.address(url)
        return WebBody(where, headers, timeout_s, start, end, version)
    if scheme in ("http", "https"):
        return WebBody(url, {}, timeout_s, start, end, version)
    return FilesystemBody(url, start)


class FilesystemBody:
    """A file of a store that fsspec knows, such as gs:// where gcsfs is installed."""

    def __init__(self, url: str, start: int) -> None:
        fs, path = filesystem(url)
        try:
            details = fs.info(path)
            self._file = fs.open(path, "rb", cache_type="readahead", block_size=8 << 20)
            self._file.seek(start)
        except FileNotFoundError:
            raise Unavailable(f"{url}: no such file", gone=True) from None
        self.start = start
        self.total: int | None = details["size"]
        self.version: str | None = str(details.get("generation") or details.get("etag") or "") or None

    def read(self, limit_bytes: int) -> bytes:
        return self._file.read(limit_bytes)

    def close(self) -> None:
        self._file.close()


def filesystem(url: str) -> Any:
    """(file system, path) of fsspec for a URL. ValueError where nothing here reads that scheme."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        scheme = scheme_of(url)
        remedy = "pip install gcsfs" if scheme in ("gs", "gcs") else "use hf://, https://, gs:// or a local path"
        raise ValueError(f"{url}: nothing here reads {scheme}:// ({describe(error)}): {remedy}") from None
