"""Downloads of whole files: resumed by range, checked against size and hash, retried until a deadline.

A file is written as a partial file, which the caller renames when it is complete. If nothing goes wrong, each file
takes one request.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from echotts.data.format.tars import begins_like_a_tar
from echotts.data.remote.opening import open_remote
from echotts.data.remote.retry import Attempt, Retries, RetryPolicy, retry
from echotts.data.remote.shard_file import ShardFile, hasher
from echotts.data.remote.web import TRANSPORT_ERRORS, Body, Unavailable

CHUNK_BYTES = 1 << 20
SLOWEST_BYTES_PER_S = 1 << 20  # the deadline of a shard is extended by a second for each of these
NO_SUCH_RANGE = 416


class Fetcher:
    """Downloads for several threads that share one set of retries."""

    def __init__(self, policy: RetryPolicy, stopping: threading.Event | None = None) -> None:
        self.retries = Retries(policy, stopping)
        self.timeout_s = policy.silence_s

    def download(self, shard: ShardFile, partial: Path, on_size: Callable[[int], None] = lambda _: None) -> int:
        """Downloads `shard` to `partial`, continuing what is already there; returns its bytes.

        `on_size` is called once with the size when it is known, and may raise. Raises Unavailable if the download fails
        until the deadline or does not match the list, Stopped if the program stops. The partial file is kept.
        """
        attempt = self.retries.start(shard.url)
        with _Partial(shard, partial) as file:
            sized = False
            while True:
                attempt.ready()
                before = file.have
                try:
                    body = open_remote(shard.url, self.timeout_s, start=file.have, version=file.version)
                    try:
                        file.begin(body)
                        if not sized and file.total is not None:
                            sized = True
                            on_size(file.total)
                            attempt.extend(file.total / SLOWEST_BYTES_PER_S)
                        while chunk := body.read(CHUNK_BYTES):
                            file.append(chunk)
                            self._look_up(attempt)
                    finally:
                        body.close()
                    file.check()
                except TRANSPORT_ERRORS as error:
                    if isinstance(error, Unavailable) and error.status == NO_SUCH_RANGE:
                        file.restart()
                    attempt.again(error, progress=file.have > before)
                    continue
                return file.have

    def read(self, url: str, limit_bytes: int) -> bytes | None:
        """A small file; None if it does not exist. ValueError if it is larger than `limit_bytes`."""
        try:
            payload = self.head(url, limit_bytes + 1)
        except Unavailable as error:
            if error.gone:
                return None
            raise
        if len(payload) > limit_bytes:
            raise ValueError(f"{url}: more than {limit_bytes} bytes")
        return payload

    def head(self, url: str, limit_bytes: int) -> bytes:
        """At most the first `limit_bytes` of a file. Raises Unavailable."""

        def ask() -> bytes:
            body = open_remote(url, self.timeout_s, end=limit_bytes)
            try:
                payload = bytearray()
                while len(payload) < limit_bytes and (chunk := body.read(limit_bytes - len(payload))):
                    payload += chunk
                if body.total is not None and len(payload) < min(body.total, limit_bytes):
                    raise Unavailable(f"{url}: truncated after {len(payload)} bytes")
                return bytes(payload)
            finally:
                body.close()

        return retry(ask, url, self.retries)

    def _look_up(self, attempt: Attempt) -> None:
        """Between two chunks: checks the deadline and whether the program is stopping."""
        attempt.check()
        if self.retries.stopping.is_set():
            self.retries.wait(0.0)


class _Partial:
    """A file being downloaded, hashed as it is written."""

    def __init__(self, shard: ShardFile, path: Path) -> None:
        self._shard = shard
        self._path = path
        self.total = shard.bytes
        self.version: str | None = None
        self.have = 0
        self._hash = hasher(shard.checksum, shard.bytes)
        self._file: BinaryIO = path.open("a+b")

    def __enter__(self) -> "_Partial":
        self._file.seek(0)
        while chunk := self._file.read(CHUNK_BYTES):
            self._hash.update(chunk)
            self.have += len(chunk)
        if self.total is None or self.have >= self.total or self._shard.checksum is None:
            self.restart()  # cannot tell whether it belongs to the current file
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def begin(self, body: Body) -> None:
        """Starts with the response of this attempt. Raises Unavailable if its size differs from the list."""
        if self._shard.bytes is not None and body.total not in (None, self._shard.bytes):
            raise Unavailable(f"{self._shard.url}: the server sends {body.total} bytes, {self._shard.bytes} are listed")
        if body.start != self.have:
            self.restart()
        if body.start:
            if body.start != self.have:
                raise Unavailable(f"{self._shard.url}: the server sends from byte {body.start}, not from the first")
        else:
            self.total = body.total
        self.version = body.version

    def append(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)
        self.have += len(chunk)

    def check(self) -> None:
        """Raises Unavailable if the body was truncated, or restarts and raises if it does not match the list."""
        self._file.flush()
        url, total = self._shard.url, self.total
        if total is not None and self.have < total:
            raise Unavailable(f"{url}: truncated after {self.have} of {total} bytes")
        wrong = ""
        kind, _, wanted = (self._shard.checksum or "").partition(":")
        if total is not None and self.have > total:
            wrong = f"received {self.have} bytes, {total} were announced"
        elif wanted and self._hash.hexdigest() != wanted:
            wrong = f"{kind} is {self._hash.hexdigest()[:12]}..., but {wanted[:12]}... is listed"
        elif not wanted and not begins_like_a_tar(self._path):
            wrong = "this is not a tar"
        if wrong:
            self.restart()
            raise Unavailable(f"{url}: {wrong}")
        os.fsync(self._file.fileno())

    def restart(self) -> None:
        self._file.truncate(0)
        self.have, self.version = 0, None
        self._hash = hasher(self._shard.checksum, self._shard.bytes)
