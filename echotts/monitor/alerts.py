"""Alerts: silent or failed runs, non-finite numbers, waiting for data, full disks.

The page polls alerts; a webhook is notified when each begins and ends.
"""

import json
import logging
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from echotts.monitor.hosts import FileEnd
from echotts.monitor.runs import Library, Run
from echotts.monitor.status import RUNNING, duration, stale_after

LOGGER = logging.getLogger(__name__)

DATA_WAIT_SHARE = 0.2  # of the time, averaged over the last lines
DISK_FREE_SHARE = 0.1
DISK_EVENT_S = 3600.0
OLD_S = 86_400.0  # runs whose last line is older raise no alerts
SETTLES_NAN = ("started", "resumed", "skipped", "rolled_back")  # events of a trainer that continues after a NaN
TOGETHER_S = 60.0  # within which all hosts of a run log its start
WEBHOOK_EVERY_S = 30.0
WEBHOOK_TIMEOUT_S = 10.0
WEBHOOK_TRIES = 3


@dataclass(frozen=True)
class Alert:
    """One condition that needs attention."""

    run: str  # id
    name: str  # of the run
    kind: str  # stale, failed, nan, data_wait, disk
    since: float  # Unix s
    message: str
    host: str | None = None

    @property
    def key(self) -> tuple[str, str, str | None]:
        return self.run, self.kind, self.host


def alerts(library: Library, now: float) -> list[Alert]:
    """All alerts at `now`, Unix s."""
    return [alert for run in library.runs() for alert in of_run(run, now)]


def of_run(run: Run, now: float) -> list[Alert]:
    """The alerts of one run; none for a run that finished or stopped, or is old."""
    status = run.status(now)
    if status.last_time is None or now - status.last_time > OLD_S or status.name in ("finished", "stopped"):
        return []
    last = status.last_time
    found = []
    ends = run.ends()
    trainers = [end for end in ends if end.process >= 0 and end.time is not None]
    if status.name in ("stale", "failed"):
        host, more = _first_silent(trainers) if status.name == "stale" else (_first_failed(trainers), "")
        reason = (status.why or f"the run has {status.name}") + more
        found.append(Alert(run.id, run.name, status.name, last, reason, host))
    elif status.name == "running":
        for host, when, reason in _silent(trainers, now, stale_after(trainers, run.stale_s)):
            found.append(Alert(run.id, run.name, "stale", when, reason, host))
    for end in ends:
        if end.process >= 0 and (reason := _not_finite(end)):
            found.append(Alert(run.id, run.name, "nan", end.time or last, reason))
            break
    for end in trainers:
        waits = [share for share in end.recent.get("time/data_wait_share", []) if math.isfinite(share)]
        if waits and (share := sum(waits) / len(waits)) > DATA_WAIT_SHARE:
            message = f"waiting for data {share:.0%} of the time: the readers are slower than the devices"
            found.append(Alert(run.id, run.name, "data_wait", end.time or last, message, end.file.host))
    for host in {end.file.host: None for end in ends}:
        if reason := _disk([end for end in ends if end.file.host == host], now):
            found.append(Alert(run.id, run.name, "disk", last, reason, host))
    return found


class Webhook:
    """Posts {"text", "began", "ended"} as JSON when alerts begin or end. `text` is what chat programs show."""

    def __init__(self, library: Library, url: str, clock: Callable[[], float] = time.time):
        self._library = library
        self._url = url
        self._clock = clock
        self._standing: dict[tuple[str, str, str | None], Alert] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="webhook", daemon=True)

    def start(self) -> None:
        """Checks every WEBHOOK_EVERY_S from now on, in a thread."""
        self._thread.start()

    def close(self) -> None:
        self._stop.set()

    def look(self) -> bool:
        """Posts changes since the last check; True if there were any and they were delivered."""
        now = {alert.key: alert for alert in alerts(self._library, self._clock())}
        began = [alert for key, alert in now.items() if key not in self._standing]
        ended = [alert for key, alert in self._standing.items() if key not in now]
        if not began and not ended:
            return False
        lines = [f"{_who(alert)}: {alert.message}" for alert in began]
        lines += [f"{_who(alert)}: over" for alert in ended]
        body = {"text": "\n".join(lines), "began": [*map(asdict, began)], "ended": [*map(asdict, ended)]}
        if not self._post(body):
            return False  # sent again at the next check
        self._standing = now
        return True

    def _watch(self) -> None:
        while not self._stop.wait(WEBHOOK_EVERY_S):
            try:
                self.look()
            except OSError as error:  # a run's files are temporarily unreadable
                LOGGER.warning("webhook: %s", error)

    def _post(self, body: dict[str, Any]) -> bool:
        request = urllib.request.Request(
            self._url, json.dumps(body).encode(), {"Content-Type": "application/json", "User-Agent": "echotts-monitor"}
        )
        reason = ""
        for attempt in range(WEBHOOK_TRIES):
            if attempt and self._stop.wait(2.0**attempt):
                return False
            try:
                with urllib.request.urlopen(request, timeout=WEBHOOK_TIMEOUT_S) as answer:
                    answer.read(1)
                return True
            except (OSError, ValueError) as error:  # urllib's errors are OSErrors
                reason = str(error)
        LOGGER.warning("webhook: %d alerts could not be sent: %s", len(body["began"]), reason)
        return False


def _who(alert: Alert) -> str:
    return f"{alert.name} {alert.kind}" + (f" on {alert.host}" if alert.host else "")


def _silent(trainers: list[FileEnd], now: float, allowed_s: float) -> Iterator[tuple[str, float, str]]:
    """(host, time of its last line, reason) of hosts that are silent while others of the run are not.

    A host that has been silent since the run last resumed, or for longer than the others' last lines reach back, is
    no longer part of the run: machines come and go, and their files stay.
    """
    began = max((_began(end) for end in trainers), default=-math.inf)
    for end in trainers:
        assert end.time is not None
        if end.time >= began - TOGETHER_S and now - end.time > allowed_s:
            reason = f"no line for {duration(now - end.time)}, the last of step {end.step}; other hosts continue"
            yield end.file.host, end.time, reason


def _began(end: FileEnd) -> float:
    """When this trainer last started or resumed, else the time of its first known line."""
    resumed = [event.time for event in end.events if event.event in RUNNING]
    return max(resumed, default=end.oldest if end.oldest is not None else -math.inf)


def _first_silent(trainers: list[FileEnd]) -> tuple[str | None, str]:
    """The host of a silent run if it has only one; otherwise text about the one that is furthest behind."""
    if len({end.file.host for end in trainers}) == 1:
        return trainers[0].file.host, ""
    behind = min(trainers, key=lambda end: end.step)
    if behind.step == max(end.step for end in trainers):
        return None, ""
    return None, f"; {behind.file.host} is furthest behind, at step {behind.step}"


def _first_failed(trainers: list[FileEnd]) -> str | None:
    """The host whose process was the first to fail since the last start."""
    began = max((_began(end) for end in trainers), default=-math.inf)
    failed = [
        (event.time, end.file.host)
        for end in trainers
        for event in end.events
        if event.event == "failed" and event.time >= began
    ]
    return min(failed)[1] if failed else None


def _not_finite(end: FileEnd) -> str | None:
    """Why a trainer's numbers are non-finite now, after its last resume; steps that it skipped itself do not count."""
    last = next((event for event in reversed(end.events) if event.event in ("nan", *SETTLES_NAN)), None)
    if last and last.event == "nan":
        return last.message or f"step {last.step}: a non-finite number"
    if end.file.watchdog or not (end.time or 0) >= (last.time if last else -math.inf):
        return None
    bad = [name for name in ("loss/train", "grad/norm", "heldout/loss") if math.isnan(end.numbers.get(name, 0.0))]
    return f"step {end.step}: {bad[0]} is not finite" if bad else None


def _disk(ends: list[FileEnd], now: float) -> str | None:
    """Why a host's disk needs attention."""
    for end in ends:
        share = end.numbers.get("host/disk_free_share", 1.0)
        if share < DISK_FREE_SHARE:
            return f"{share:.1%} of the disk is free"
        for event in reversed(end.events):
            if event.event == "disk_full" and now - event.time < DISK_EVENT_S:
                return event.message or "the disk is full"
    return None
