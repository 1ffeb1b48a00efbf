"""Health metrics: memory, disk, step times, and lag between processes."""

import math
import os
import shutil
import time
from collections import deque
from pathlib import Path

import jax
import numpy as np

from echotts.multihost import messages

SLOW = 5  # a step is slow if it takes this multiple of the usual time
SLOW_S = 1.0  # and at least this much longer; smaller differences are noise
USUAL_STEPS = 50  # number of steps whose median is the usual time
KNOWN_STEPS = 10  # minimum number of steps for a usual time
POST_S = 1.0  # interval between posts of the step number
TOPIC = "launched"  # topic under which each process posts the number of its last step
STATM = Path("/proc/self/statm")


def host_numbers(run_dir: Path) -> dict[str, float | int]:
    """Metrics of this process and its machine; values that the system does not provide are omitted."""
    disk = shutil.disk_usage(run_dir)
    numbers: dict[str, float | int] = {
        "host/disk_free_bytes": disk.free,
        "host/disk_free_share": disk.free / max(disk.total, 1),
    }
    if STATM.exists():
        numbers["host/memory_bytes"] = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    in_use = [stats["bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
    if in_use:
        numbers["device/memory_bytes"] = max(in_use)
    return numbers


class Pace:
    """How far this process lags behind the furthest one, by step numbers posted to the coordinator once per second.

    Nothing waits: it takes two small requests, one per second and one per metrics line. A single process has no lag.
    """

    def __init__(self) -> None:
        self._step = 0
        self._posted = -math.inf

    def at(self, step: int) -> None:
        """Reports that this process has launched the step."""
        self._step = step
        now = time.monotonic()
        if jax.process_count() > 1 and now - self._posted >= POST_S:
            self._posted = now
            messages.post(f"{TOPIC}/{jax.process_index()}", str(step))

    def numbers(self) -> dict[str, int]:
        """The current metrics."""
        if jax.process_count() == 1:
            return {}
        furthest = max(map(int, messages.get_below(TOPIC)), default=self._step)
        return {"host/lag_steps": max(furthest - self._step, 0)}


class StepTimes:
    """Durations of single steps, without saving, evaluation and compilation."""

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=USUAL_STEPS)
        self._since_line: list[float] = []

    def add(self, seconds: float) -> float | None:
        """Adds the duration of one step. Returns the usual time if the step was far slower."""
        usual = float(np.median(self._usual)) if len(self._usual) >= KNOWN_STEPS else None
        self._usual.append(seconds)
        self._since_line.append(seconds)
        return usual if usual is not None and seconds > max(SLOW * usual, usual + SLOW_S) else None

    def numbers(self) -> dict[str, float]:
        """Median and 95th percentile since the last call."""
        if not self._since_line:
            return {}
        median, most = np.percentile(self._since_line, [50, 95])
        self._since_line = []
        return {"time/step_p50_s": float(median), "time/step_p95_s": float(most)}
