"""Google Cloud Storage through gcsfs (extra `gcs`), except for TensorStore, which has its own access.

Processes that share a bucket must see each other's latest writes, so listings are not cached. Buckets have no folders:
a folder is a common prefix of object names.
"""

import contextlib
import functools
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

SCHEME = "gs://"
CHECK_S = 60.0  # maximum time for opening a bucket
INSTALL = "pip install 'echotts[gcs]'"
NO_CREDENTIALS = "gcloud auth application-default login, or a service account on the machine"
RIGHTS = "roles/storage.objectUser and roles/storage.legacyBucketReader on the bucket"


def is_bucket(spec: object) -> bool:
    """Whether a path is in a bucket, like gs://bucket/run."""
    return str(spec).startswith(SCHEME)


def open_bucket(url: str) -> tuple[Any, str]:
    """(fsspec file system, `bucket/path`). ModuleNotFoundError if the extra is not installed."""
    try:
        return _filesystem(), url.removeprefix(SCHEME).rstrip("/")
    except ImportError as error:
        raise ModuleNotFoundError(f"{url}: buckets need more packages ({first_line(error)}): {INSTALL}") from error


@functools.cache
def _filesystem() -> Any:
    import fsspec
    import fsspec.config
    import gcsfs.core

    for protocol in ("gs", "gcs"):
        # the default class supports hierarchical buckets and needs a gRPC request for each bucket
        fsspec.register_implementation(protocol, gcsfs.core.GCSFileSystem, clobber=True)
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs each error with a traceback before raising it
    return fsspec.filesystem("gcs")


@functools.cache
def failures() -> tuple[type[Exception], ...]:
    """Exceptions of bucket access, including OSError."""
    try:
        import aiohttp
        import gcsfs.retry
        import google.auth.exceptions
        import requests
    except ImportError:
        return (OSError,)
    return (
        OSError,
        gcsfs.retry.HttpError,
        gcsfs.retry.NonRetryableError,
        gcsfs.retry.ChecksumError,
        aiohttp.ClientError,
        requests.RequestException,
        google.auth.exceptions.GoogleAuthError,
    )


@contextlib.contextmanager
def plain_errors(path: object) -> Iterator[None]:
    """Converts bucket errors inside to one-line OSErrors that name `path`; FileNotFoundError, FileExistsError pass."""
    if not is_bucket(path):
        yield
        return
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except failures() as error:
        raise OSError(f"{path}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """A one-line description of an error, with a remedy if known."""
    code, text = getattr(error, "code", None), first_line(error)
    if code == 401:
        return f"no valid credentials ({text}): {NO_CREDENTIALS}"
    if text.startswith("Forbidden"):
        return f"permission denied ({' '.join(str(error).split()[2:]) or text}): the account needs {RIGHTS}"
    return text


def check(url: str) -> None:
    """Writes, reads and deletes an object below `url`. One-line OSError, within CHECK_S, if that fails."""
    fs, path = open_bucket(url)
    bucket = path.split("/")[0]
    probe = f"{path}/.probe-{socket.gethostname()}-{os.getpid()}"

    def use() -> None:
        try:
            fs.call("GET", "b/{}", bucket)
        except FileNotFoundError:
            raise FileNotFoundError(f"{url}: there is no bucket {bucket}: create it, or correct the name") from None
        fs.pipe_file(probe, b"x")
        if fs.cat_file(probe) != b"x":
            raise OSError(f"{url}: data written there cannot be read back")
        fs.rm_file(probe)

    with plain_errors(url):
        _within(CHECK_S, use, url)


def names_below(url: str) -> list[str]:
    """Object names relative to a folder (one request per 1000); empty if there are none."""
    fs, path = open_bucket(url)
    with plain_errors(url):
        return [name.removeprefix(f"{path}/") for name in fs.find(path)]


def set_aside(url: str, target: str, marker: str) -> None:
    """Renames the folder `url`; its file `marker`, which makes it valid, is removed before the rest is deleted."""
    fs, source = open_bucket(url)
    _, copy = open_bucket(target)
    with plain_errors(url):
        if fs.exists(copy):
            fs.rm(copy, recursive=True)
        fs.copy(source, copy, recursive=True)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(f"{source}/{marker}")
        fs.rm(source, recursive=True)


def _within(seconds: float, call: Callable[[], None], what: str) -> None:
    """Runs `call` in a thread with a timeout, in case the network drops everything silently."""
    failed: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="bucket-check", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:.0f} s: check the network connection")
    if failed:
        raise failed[0]


def first_line(error: BaseException) -> str:
    """An error's message in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
