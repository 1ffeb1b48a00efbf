"""Buckets of Google Cloud Storage, through gcsfs, which the extra `gcs` brings; TensorStore reads and writes by itself.

Who shares a bucket with other processes must see what they wrote a second ago, so no listing is kept. Folders do not
exist there: a folder is what some object's name begins with.
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
CHECK_S = 60.0  # that opening a bucket may take
INSTALL = "pip install 'echotts[gcs]'"
NO_CREDENTIALS = "gcloud auth application-default login, or a service account on the machine"
RIGHTS = "roles/storage.objectUser and roles/storage.legacyBucketReader on the bucket"


def is_bucket(spec: object) -> bool:
    """Whether it names something in a bucket: gs://bucket/run."""
    return str(spec).startswith(SCHEME)


def open_bucket(url: str) -> tuple[Any, str]:
    """(fsspec's file system, `bucket/path` in it). ModuleNotFoundError where the extra is not installed."""
    try:
        return _filesystem(), url.removeprefix(SCHEME).rstrip("/")
    except ImportError as error:
        raise ModuleNotFoundError(f"{url}: buckets need more packages ({_first_line(error)}): {INSTALL}") from error


@functools.cache
def _filesystem() -> Any:
    import fsspec
    import fsspec.config
    import gcsfs.core

    for protocol in ("gs", "gcs"):
        # not the class for buckets with folders, which asks by gRPC for the kind of each bucket
        fsspec.register_implementation(protocol, gcsfs.core.GCSFileSystem, clobber=True)
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # tells each failure with a traceback, and then raises it
    return fsspec.filesystem("gcs")


@functools.cache
def failures() -> tuple[type[Exception], ...]:
    """What goes wrong in a bucket, OSError among them."""
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
def plainly(place: object) -> Iterator[None]:
    """In here failures in a bucket are OSError of one line that names `place`; that something is there or not stays."""
    if not is_bucket(place):
        yield
        return
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except failures() as error:
        raise OSError(f"{place}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """What went wrong, in one line, with the remedy where one is known."""
    code, text = getattr(error, "code", None), _first_line(error)
    if code == 401:
        return f"no valid credentials ({text}): {NO_CREDENTIALS}"
    if text.startswith("Forbidden"):
        return f"permission denied ({' '.join(str(error).split()[2:]) or text}): the account needs {RIGHTS}"
    return text


def check(url: str) -> None:
    """Writes, reads and deletes an object below `url`. OSError of one line, within CHECK_S, where that fails."""
    fs, path = open_bucket(url)
    bucket = path.split("/")[0]
    probe = f"{path}/.probe-{socket.gethostname()}-{os.getpid()}"

    def use() -> None:
        try:
            fs.call("GET", "b/{}", bucket)
        except FileNotFoundError:
            raise FileNotFoundError(f"{url}: there is no bucket {bucket}: make it, or correct the name") from None
        fs.pipe_file(probe, b"x")
        if fs.cat_file(probe) != b"x":
            raise OSError(f"{url}: what is written there does not come back")
        fs.rm_file(probe)

    with plainly(url):
        _within(CHECK_S, use, url)


def names_below(url: str) -> list[str]:
    """The objects below a folder, by their names after it; one request for a thousand. None where there is none."""
    fs, path = open_bucket(url)
    with plainly(url):
        return [name.removeprefix(f"{path}/") for name in fs.find(path)]


def set_aside(url: str, target: str, marker: str) -> None:
    """Renames the folder `url`, which has a file `marker` as long as it counts. Nothing of it counts half way."""
    fs, source = open_bucket(url)
    _, copy = open_bucket(target)
    with plainly(url):
        if fs.exists(copy):
            fs.rm(copy, recursive=True)
        fs.copy(source, copy, recursive=True)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(f"{source}/{marker}")
        fs.rm(source, recursive=True)


def _within(seconds: float, call: Callable[[], None], what: str) -> None:
    """Runs `call` in a thread, so that a network that swallows everything does not hold the program up."""
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
        raise TimeoutError(f"no answer within {seconds:.0f} s: is there a way to the network?")
    if failed:
        raise failed[0]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
