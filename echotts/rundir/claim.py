"""Allows only one training at a time in a run directory; a second one is told who holds it.

The claim is an exclusive flock on TRAINER, which is released even by a crash, and the file's content: host, process id,
start time. If the holder is on another host and the file system does not share locks, the file's modification time
tells whether it is alive: the holder touches it every HEARTBEAT_S. In a bucket, which has no locks, the object tells
by its content and time, and requests with a generation precondition let only one of two simultaneous trainings win.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from etils import epath

from echotts import gcs
from echotts.rundir.layout import TRAINER
from echotts.rundir.leases import HEARTBEAT_S, NO_LOCKS, STALE_S, beating, process_start, this_machine
from echotts.strict_json import load_json

LOGGER = logging.getLogger(__name__)

CLAIM_BYTES = 4096
LOOK_S = 2.5 * HEARTBEAT_S  # a live holder touches its file within this time


class RunInUseError(FileExistsError):
    """Another training is using the run directory."""


@contextmanager
def claimed(run_dir: Path | epath.Path) -> Iterator[None]:
    """Prevents other trainings from starting in this run directory. RunInUseError names one that already runs there."""
    with _claimed_here(run_dir) if isinstance(run_dir, Path) else _claimed_in_bucket(str(run_dir)):
        yield


@contextmanager
def _claimed_here(run_dir: Path) -> Iterator[None]:
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / TRAINER
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunInUseError(_in_use(run_dir, _holder(_read(path)))) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        holder = _holder(_read(path))
        if holder.get("host") not in (None, socket.gethostname()):
            _wait_for_heartbeat(run_dir, holder, path.stat().st_mtime, lambda: path.stat().st_mtime)
        file.truncate(0)
        file.write(_claim())
        file.flush()
        with beating(path):
            yield
        with contextlib.suppress(OSError):  # so the next training need not wait for a heartbeat
            file.truncate(0)


@contextmanager
def _claimed_in_bucket(url: str) -> Iterator[None]:
    fs, folder = gcs.open_bucket(url)
    target = f"{folder}/{TRAINER}"
    with gcs.plain_errors(url):
        found = _object(fs, target)
        if found is not None:
            holder = _holder(fs.cat_file(target))
            if all(holder.get(key) == value for key, value in this_machine().items()):
                if holder.get("started") is not None and process_start(holder["pid"]) == holder["started"]:
                    raise RunInUseError(_in_use(url, holder))
            elif holder:
                _wait_for_heartbeat(url, holder, _time(found), lambda: _time(_object(fs, target)))
            with contextlib.suppress(FileNotFoundError, FileExistsError):  # another training was faster: seen below
                _change(fs, "DELETE", target, found["generation"])
        try:
            fs.pipe_file(target, _claim().encode(), mode="create")
        except FileExistsError:
            raise RunInUseError(_in_use(url, _holder(fs.cat_file(target)))) from None
    with _beating_in_bucket(url, fs, target):
        yield


@contextmanager
def _beating_in_bucket(url: str, fs: Any, target: str) -> Iterator[None]:
    """Renews the object every HEARTBEAT_S, which makes it a new generation; deletes it at the end."""
    generation = fs.info(target)["generation"]
    over = threading.Event()

    def beat() -> None:
        nonlocal generation
        while not over.wait(HEARTBEAT_S):
            try:
                with gcs.plain_errors(url):
                    _change(fs, "POST", target, generation, "/compose")
                    generation = fs.info(target)["generation"]
            except (FileNotFoundError, FileExistsError):
                LOGGER.error("%s: another training took over, since this one did not respond: stop one of them", url)
                return
            except OSError as error:
                LOGGER.warning("%s: could not renew the claim on the run directory: %s", url, error)

    thread = threading.Thread(target=beat, name="claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LOOK_S)
        with contextlib.suppress(OSError), gcs.plain_errors(url):
            _change(fs, "DELETE", target, generation)


def _change(fs: Any, method: str, target: str, generation: str, verb: str = "") -> None:
    """Deletes an object, or renews it (composes it of itself). FileExistsError if it is another generation by now."""
    bucket, _, key = target.partition("/")
    body = {"sourceObjects": [{"name": key}]} if verb else None
    fs.call(method, "b/{}/o/{}" + verb, bucket, key, ifGenerationMatch=generation, json=body)


def _object(fs: Any, target: str) -> dict[str, Any] | None:
    try:
        return fs.info(target)
    except FileNotFoundError:
        return None


def _time(found: dict[str, Any] | None) -> float | None:
    return None if found is None else datetime.fromisoformat(found["updated"]).timestamp()


def _claim() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return json.dumps(this_machine() | {"pid": os.getpid(), "started": process_start(os.getpid()), "since": since})


def _wait_for_heartbeat(
    run_dir: object, holder: dict[str, Any], touched: float | None, look: Callable[[], float | None]
) -> None:
    """RunInUseError if a training on another host still touches its claim; `look` returns when it last did."""
    if touched is None or time.time() - touched > STALE_S:
        return
    LOGGER.warning(
        "%s: was in use on host %s; waiting %.0f s to see whether that training is still alive",
        run_dir,
        holder["host"],
        LOOK_S,
    )
    end = time.monotonic() + LOOK_S
    while time.monotonic() < end:
        time.sleep(HEARTBEAT_S / 20)
        seen = look()
        if seen is None:
            return
        if seen != touched:
            raise RunInUseError(_in_use(run_dir, holder))


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(CLAIM_BYTES + 1)


def _holder(content: bytes) -> dict[str, Any]:
    """The content of a claim; empty if it is damaged."""
    try:
        claim = load_json(content, TRAINER, dict, max_bytes=CLAIM_BYTES)
    except ValueError:
        return {}
    return claim if isinstance(claim.get("host"), str) and type(claim.get("pid")) is int else {}


def _in_use(run_dir: object, holder: dict[str, Any]) -> str:
    host, pid, since = (holder.get(name, "(unknown)") for name in ("host", "pid", "since"))
    return (
        f"{run_dir}: in use by another training: host {host}, process {pid}, since {since}; "
        "stop it first, or give another --run_dir"
    )
