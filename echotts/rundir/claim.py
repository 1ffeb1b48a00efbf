"""One training at a time in a run directory: the second is told whose it is.

The claim is an exclusive flock on TRAINER, which no crash outlives, and what the file says: host, process id, since
when. Where the holder is of another host, and the file system does not carry its lock here, the file's time tells
whether it lives: the holder touches it every HEARTBEAT_S.
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

LOOK_S = 2.5 * HEARTBEAT_S  # in which a live holder touches its file


class RunInUseError(OSError):
    """Another training works in the run directory."""


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Within it no other training begins in this run directory. RunInUseError names the one that is there already."""
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
        said = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        file.write(json.dumps(said) + "\n")
        file.flush()
        with beating(path):
            yield
        with contextlib.suppress(OSError):  # then the next one need not wait to see whether this one lives
            file.truncate(0)


def _wait_for_heartbeat(run_dir: Path, path: Path) -> None:
    """RunInUseError where another host's training still touches its claim. Returns at once where nobody's is fresh."""
    holder = _holder(path)
    touched = path.stat().st_mtime
    if holder.get("host") in (None, socket.gethostname()) or time.time() - touched > STALE_S:
        return
    LOGGER.warning(
        "%s: was in use on host %s; waiting %.0f s to see whether it still is", run_dir, holder["host"], LOOK_S
    )
    end = time.monotonic() + LOOK_S
    while time.monotonic() < end:
        time.sleep(HEARTBEAT_S / 20)
        if path.stat().st_mtime != touched:
            raise RunInUseError(_in_use(run_dir, holder))


def _holder(path: Path) -> dict[str, Any]:
    """What the claim's file says; nothing where it is empty or damaged."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _in_use(run_dir: Path, holder: dict[str, Any]) -> str:
    host, pid, since = (holder.get(name, "(unknown)") for name in ("host", "pid", "since"))
    return (
        f"{run_dir}: another training works there: host {host}, process {pid}, since {since}; "
        "stop that one first, or give another --run_dir"
    )
