"""The watchdog's lines in a run's metrics: `metrics/<hostname>.watchdog.jsonl`, beside the trainer's own.

The metric and event names are listed in rundir/metrics.py.
"""

import json
import logging
import os
import socket
import time
from pathlib import Path

from echotts.rundir.free_space import Space

NOT_TRAINING = -1  # the process index in lines not written by a training process
LOGGER = logging.getLogger(__name__)


def write_event(run_dir: Path, event: str, step: int, message: str, space: Space, freed_bytes: int) -> None:
    """Appends one line with one system call. On a full disk the line is lost, and a warning is logged."""
    line = {
        "time": round(time.time(), 3),
        "step": step,
        "process": NOT_TRAINING,
        "event": event,
        "message": message,
        "disk/freed_bytes": freed_bytes,
        "host/disk_free_bytes": space.free_bytes,
        "host/disk_free_share": round(1 - space.used_share, 4),
    }
    path = run_dir / "metrics" / f"{socket.gethostname()}.watchdog.jsonl"
    try:
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        LOGGER.warning("%s: a metrics line was lost: %s", path, error.strerror)
