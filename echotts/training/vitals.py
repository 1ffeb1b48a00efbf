"""How the machine and the steps are doing: memory, disk, and how long steps take."""

import math
import os
import shutil
import time
from collections import deque
from pathlib import Path

import jax
import numpy as np

from echotts.multihost import messages

SLOW = 5  # times the usual
SLOW_S = 1.0  # that a slow step takes longer at least: below, everything is noise
USUAL_STEPS = 50  # the usual is the median of so many
KNOWN_STEPS = 10  # without which nothing is usual yet
SAY_S = 1.0
TOPIC = "launched"  # under which each process leaves the number of its last step
STATM = Path("/proc/self/statm")


def host_numbers(run_dir: Path) -> dict[str, float | int]:
    """Metrics of this process and its machine; what the system does not tell is left out."""
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
    """How far this process is behind the furthest, by what each leaves at the coordinator once a second.

    Nothing waits for another: it is two small requests, one a second and one a line. Alone there is no pace.
    """

    def __init__(self) -> None:
        self._step = 0
        self._said = -math.inf

    def at(self, step: int) -> None:
        """This process has launched the step."""
        self._step = step
        now = time.monotonic()
        if jax.process_count() > 1 and now - self._said >= SAY_S:
            self._said = now
            messages.post(f"{TOPIC}/{jax.process_index()}", str(step))

    def numbers(self) -> dict[str, int]:
        """Metrics of now."""
        if jax.process_count() == 1:
            return {}
        furthest = max(map(int, messages.get_below(TOPIC)), default=self._step)
        return {"host/lag_steps": max(furthest - self._step, 0)}


class StepTimes:
    """Times of single steps, saving, measuring and compiling left out."""

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=USUAL_STEPS)
        self._since_line: list[float] = []

    def add(self, seconds: float) -> float | None:
        """One step took so long. Returns the usual time if that was far more."""
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
