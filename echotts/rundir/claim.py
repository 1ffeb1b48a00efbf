"""Allows only one training at a time in a run directory; a second one is told who holds it.

The claim is an exclusive flock on TRAINER, which is released even by a crash, and the file's content: host, process id,
start time. If the holder is on another host and the file system does not share locks, the file's modification time
tells whether it is alive: the holder touches it every HEARTBEAT_S.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from echotts.rundir.layout import TRAINER
from echotts.rundir.leases import HEARTBEAT_S, NO_LOCKS, STALE_S, beating

LOGGER = logging.getLogger(__name__)

LOOK_S = 2.5 * HEARTBEAT_S  # a live holder touches its file within this time


class RunInUseError(OSError):
    """Another training is using the run directory."""


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Prevents other trainings from starting in this run directory. RunInUseError names one that already runs there."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / TRAINER
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunInUseError(_in_use(run_dir, _holder(path))) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        _wait_for_heartbeat(run_dir, path)
        file.truncate(0)
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        file.write(json.dumps(holder) + "\n")
        file.flush()
        with beating(path):
            yield
        with contextlib.suppress(OSError):  # so the next training need not wait for a heartbeat
            file.truncate(0)


def _wait_for_heartbeat(run_dir: Path, path: Path) -> None:
    """RunInUseError if a training on another host still touches its claim; returns at once if no claim is fresh."""
    holder = _holder(path)
    touched = path.stat().st_mtime
    if holder.get("host") in (None, socket.gethostname()) or time.time() - touched > STALE_S:
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
        if path.stat().st_mtime != touched:
            raise RunInUseError(_in_use(run_dir, holder))


def _holder(path: Path) -> dict[str, Any]:
    """The content of the claim's file; empty if it is empty or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _in_use(run_dir: Path, holder: dict[str, Any]) -> str:
    host, pid, since = (holder.get(name, "(unknown)") for name in ("host", "pid", "since"))
    return (
        f"{run_dir}: in use by another training: host {host}, process {pid}, since {since}; "
        "stop it first, or give another --run_dir"
    )
