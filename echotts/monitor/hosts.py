"""The latest state of each host, from the ends of its metrics files: enough for status, hosts table and alerts.

Listing a run does not require reading it whole, so a folder with hundreds of runs opens immediately.
"""

import re
from dataclasses import dataclass, field

import numpy as np

from echotts.monitor.folders import Folder, shown
from echotts.monitor.parsing import Event, Parsed, parse
from echotts.rundir.layout import METRICS

FILE = re.compile(r"(?P<host>.+?)(?P<watchdog>\.watchdog)?\.jsonl(?:\.\d+)?")  # rotated files end with a number
END_BYTES = 1 << 16
START_BYTES = 1 << 13
RECENT = 10  # lines used for alerts


@dataclass(frozen=True)
class MetricsFile:
    """One of `<run dir>/metrics/<host>[.watchdog].jsonl[.<number>]`."""

    path: str
    host: str
    watchdog: bool
    size_bytes: int


@dataclass
class FileEnd:
    """The contents of the last lines of one file."""

    file: MetricsFile
    started: float | None = None  # of the file's first line, Unix s
    oldest: float | None = None  # of the first of the lines read
    time: float | None = None  # of the last line
    step: int = 0
    process: int = 0
    interval_s: float | None = None  # median between lines
    numbers: dict[str, float] = field(default_factory=dict)  # last value of each name; NaN for null
    recent: dict[str, list[float]] = field(default_factory=dict)  # last few values of each name, oldest first
    events: list[Event] = field(default_factory=list)


class Ends:
    """The ends of all metrics files of a run; a file is read again when its size changes."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self._known: dict[str, FileEnd] = {}

    def look(self) -> list[FileEnd]:
        """One per file, by name."""
        ends = {}
        for file in metrics_files(self._folder):
            known = self._known.get(file.path)
            ends[file.path] = known if known and known.file == file else self._read(file)
        self._known = ends
        return list(ends.values())

    def _read(self, file: MetricsFile) -> FileEnd:
        start = max(file.size_bytes - END_BYTES, 0)
        block = self._folder.read(file.path, start, END_BYTES)
        first = block.find(b"\n") + 1 if start else 0
        end = FileEnd(file)
        _take(end, parse(block[first : block.rfind(b"\n") + 1]))
        known = self._known.get(file.path)
        if known and known.file.size_bytes <= file.size_bytes and known.started:
            end.started = known.started
        else:
            head = self._folder.read(file.path, 0, START_BYTES)
            parsed = parse(head[: head.rfind(b"\n") + 1])
            end.started = min((float(table.times[0]) for table in parsed.tables if len(table.times)), default=end.time)
        return end


def metrics_files(folder: Folder) -> list[MetricsFile]:
    """The metrics files of a run, by name."""
    files = []
    for entry in folder.entries(METRICS):
        matched = None if entry.is_folder else FILE.fullmatch(entry.name)
        if matched:
            watchdog = matched["watchdog"] is not None
            files.append(MetricsFile(f"{METRICS}/{entry.name}", shown(matched["host"]), watchdog, entry.size_bytes))
    return files


def _take(end: FileEnd, parsed: Parsed) -> None:
    """Fills `end` from the parsed lines; later lines take precedence."""
    tables = sorted((table for table in parsed.tables if len(table.times)), key=lambda table: table.times[-1])
    end.oldest = min((float(table.times[0]) for table in tables), default=None)
    for table in tables:
        end.time, end.step, end.process = float(table.times[-1]), int(table.steps[-1]), table.process
        if table.process >= 0 and not table.irregular and len(table.times) > 2:
            between = float(np.median(np.diff(table.times)))
            end.interval_s = between if end.interval_s is None else min(between, end.interval_s)
        for place, name in enumerate(table.names):
            end.numbers[name] = float(table.values[place, -1])
            end.recent[name] = table.values[place, -RECENT:].tolist()
    end.events = sorted(parsed.events, key=lambda event: event.time)
