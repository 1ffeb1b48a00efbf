"""The status of a run according to the last lines of its metrics files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from echotts.monitor.hosts import FileEnd
from echotts.monitor.parsing import Event
from echotts.rundir.layout import METRICS

RUNNING, ENDED = {"started", "resumed"}, {"finished": "finished", "failed": "failed", "stopped": "stopped"}
STALE_S = 120.0  # without a line; more if lines are written rarely
STALE_LINES = 5


@dataclass(frozen=True)
class Status:
    """The state of a run according to its files."""

    name: str  # running, stale, finished, failed, stopped, empty
    why: str | None
    step: int
    steps: int | None
    left_s: float | None
    last_time: float | None
    started_time: float | None
    metrics_where: str | None

    @property
    def progress(self) -> float | None:
        return min(self.step / self.steps, 1.0) if self.steps else None


def status_of(ends: Sequence[FileEnd], now: float, stale_s: float | None, steps: int | None) -> Status:
    """The state of a run at `now`, Unix s. `stale_s` overrides when it is stale; `steps` is how many it will have."""
    trainers = [end for end in ends if end.time is not None and end.process >= 0 and not end.file.watchdog]
    where = metrics_where(trainers)
    if not trainers:
        why = "no metrics lines yet" if ends else f"no {METRICS} folder with lines in it"
        return Status("empty", why, 0, steps, None, None, None, where)
    last = max(trainers, key=lambda end: (end.time or 0.0, -end.process))
    name, why = _state(trainers, now, stale_s)
    if steps and last.step >= steps and name == "stale":
        name, why = "finished", None  # a trainer that wrote no events
    left_s = last.numbers.get("time/left_s") if name in ("running", "stale") else None
    started = min((end.started for end in trainers if end.started is not None), default=None)
    return Status(name, why, last.step, steps, finite(left_s), last.time, started, where)


def metrics_where(trainers: list[FileEnd]) -> str | None:
    """Where the run's own metrics are, if the lines here are not those of process 0."""
    if not trainers or any(end.process == 0 for end in trainers):
        return None
    end = min(trainers, key=lambda end: end.process)
    said = next((event.message for event in reversed(end.events) if event.event in RUNNING), "")
    return (
        f"these lines are from process {end.process} on host {end.file.host}; checkpoints, samples and the run's "
        f"own metrics are on the host of process 0{f' ({said})' if said else ''}"
    )


def stale_after(trainers: list[FileEnd], given_s: float | None) -> float:
    """Seconds without a line after which a run counts as stale."""
    if given_s is not None:
        return given_s
    between = max((end.interval_s for end in trainers if end.interval_s is not None), default=0.0)
    return max(STALE_S, STALE_LINES * between)


def _state(trainers: list[FileEnd], now: float, stale_s: float | None) -> tuple[str, str | None]:
    """(status, reason) from the trainers' last events and the age of their lines."""
    said = [event for end in trainers for event in end.events if event.event in RUNNING | ENDED.keys()]
    last: Event | None = max(said, key=lambda event: event.time, default=None)
    newest = max(end.time for end in trainers if end.time is not None)
    if last and last.event in ENDED and newest - last.time < 60:
        return ENDED[last.event], last.message or None
    silent_s, allowed_s = now - newest, stale_after(trainers, stale_s)
    if silent_s <= allowed_s:
        return "running", None
    hung = next((event for end in trainers for event in reversed(end.events) if event.event == "hang"), None)
    said_why = f"; last: {hung.message}" if hung else ""
    return (
        "stale",
        f"no line for {duration(silent_s)}, previously one every {duration(allowed_s / STALE_LINES)}{said_why}",
    )


def duration(seconds: float) -> str:
    """Seconds as text: 42 s, 12 min, 5 h, 3 days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
