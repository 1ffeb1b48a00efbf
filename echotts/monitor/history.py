"""All numbers of one run, in memory: columns for each kind of line, which grow with the files.

Beyond BUDGET_BYTES older lines are thinned: of every four, each column keeps its minimum and maximum, so spikes are
preserved. If a step occurs twice the later line counts; lines superseded by a resumed run do not count.
"""

import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from echotts.monitor.columns import Columns, standing
from echotts.monitor.folders import Folder
from echotts.monitor.hosts import MetricsFile, metrics_files
from echotts.monitor.lines import LineReader, sampled
from echotts.monitor.parsing import Event, Names, Parsed

BUDGET_BYTES = 40 << 20  # per run: 400,000 trainer lines
MAX_KINDS = 300  # a run has about ten kinds of lines per host; an untrusted file may have any number
MAX_EVENTS = 5000
ORDERS = 8  # cached orders of merged kinds of lines
MARKS = 1000  # cursors that are kept
HALF_LINE_S = 5.0  # a last line unfinished for longer is counted as bad
PREVIEW_BLOCKS = 64

_numbers = itertools.count(1)


class Points(NamedTuple):
    """The lines with one name that count, oldest first."""

    times: np.ndarray
    steps: np.ndarray
    values: np.ndarray


Kind = tuple[str, int, Names, bool]
"""File, process, names, and whether of irregular lines."""


@dataclass
class Cursor:
    """A position in a history: how far a page has seen it."""

    history: int
    generation: int
    version: int

    def __str__(self) -> str:
        return f"{self.history}-{self.generation}-{self.version}"

    @classmethod
    def read(cls, text: str) -> "Cursor | None":
        """Parses the result of `str`; None for anything else."""
        parts = text.split("-")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 16 for part in parts):
            return None
        return cls(*map(int, parts))


class History:
    """The contents of a run's metrics files so far. `refresh` reads new lines; other methods use what was read."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.lock = threading.RLock()
        self.events: list[tuple[MetricsFile, Event]] = []
        self._number = next(_numbers)
        self._generation = 0  # changes when earlier responses no longer hold
        self._version = 0  # changes when lines are added
        self._readers: dict[str, tuple[MetricsFile, LineReader]] = {}
        self._columns: dict[Kind, Columns] = {}
        self._marks: deque[tuple[int, dict[Kind, int], int]] = deque(maxlen=MARKS)
        self._orders: dict[tuple[Kind, ...], tuple[tuple[int, ...], np.ndarray]] = {}
        self._half_since: dict[str, tuple[int, float]] = {}
        self._dropped_events = 0
        self._ignored = 0

    @property
    def cursor(self) -> Cursor:
        return Cursor(self._number, self._generation, self._version)

    @property
    def bytes(self) -> int:
        return sum(columns.bytes for columns in self._columns.values())

    @property
    def cuts(self) -> int:
        """How often a file was truncated or replaced."""
        return sum(reader.cuts for _, reader in self._readers.values())

    @property
    def bad(self) -> int:
        """Number of unreadable lines, including a last line that stays unfinished."""
        now = time.monotonic()
        half = 0
        for path, (_, reader) in self._readers.items():
            size, since = self._half_since.get(path, (-1, now))
            half += reader.has_half_line and size == reader.size_bytes and now - since > HALF_LINE_S
        return half + self._ignored + sum(reader.bad for _, reader in self._readers.values())

    def refresh(self) -> None:
        """Reads new lines of all metrics files."""
        with self.lock:
            self._find_files()
            for path, (file, reader) in self._readers.items():
                restarted, news = reader.poll()
                if restarted:
                    self._forget(path)
                for parsed in news:
                    self._take(file, parsed)
                if self._half_since.get(path, (-1, 0.0))[0] != reader.size_bytes:
                    self._half_since[path] = (reader.size_bytes, time.monotonic())
            self._mark()

    def preview(self) -> "History":
        """A history of samples from every part of the files, in a fraction of the time."""
        rough = History(self.folder)
        for file in metrics_files(self.folder):
            for parsed in sampled(self.folder, file.path, file.size_bytes, PREVIEW_BLOCKS):
                rough._take(file, parsed)
        rough._mark()
        return rough

    def known(self) -> set[str]:
        """All metric names."""
        return {name for columns in list(self._columns.values()) for name in columns.names}

    def names(self) -> dict[str, int]:
        """Number of lines by name, of the representative process (see `_speaking`)."""
        return {name: sum(each.rows + each.thinned for _, each in self._speaking(name)) for name in self.known()}

    def points(self, name: str, last: int | None = None) -> Points:
        """The lines with this name, or the `last` ones, of the representative process (see `_speaking`)."""
        speaking = self._speaking(name)
        if not speaking:
            return Points(np.empty(0), np.empty(0, np.int32), np.empty(0))
        if len(speaking) > 1:
            order = self._merged(speaking)
            order = order if last is None else order[max(len(order) - last, 0) :]
            parts = zip(*((each.times, each.steps, each.of(name)) for _, each in speaking), strict=True)
            return Points(*(np.concatenate(part)[order] for part in parts))
        [(_, columns)] = speaking
        rows = columns.standing if columns.process >= 0 else slice(0, columns.rows)  # watchdog lines have no steps
        if isinstance(rows, slice):
            rows = slice(0 if last is None else max(rows.stop - last, 0), rows.stop)
        elif last is not None:
            rows = rows[max(len(rows) - last, 0) :]
        return Points(columns.times[rows], columns.steps[rows], columns.of(name)[rows])

    def _merged(self, speaking: list[tuple[Kind, Columns]]) -> np.ndarray:
        """The rows of several kinds of lines that count, in order of writing."""
        key = tuple(kind for kind, _ in speaking)
        rows = self._generation, *(columns.rows for _, columns in speaking)
        known = self._orders.get(key)
        if known and known[0] == rows:
            return known[1]
        order = np.argsort(np.concatenate([columns.times for _, columns in speaking]), kind="stable")
        if speaking[0][1].process >= 0:
            order = order[standing(np.concatenate([columns.steps for _, columns in speaking])[order])]
        while len(self._orders) >= ORDERS:
            del self._orders[next(iter(self._orders))]
        self._orders[key] = rows, order.astype(np.int32)
        return self._orders[key][1]

    def newer(self, name: str, cursor: Cursor) -> int | None:
        """How many of the last `points` came after the cursor; None if earlier ones have changed."""
        counted = self._counted(cursor)
        if counted is None:
            return None
        seen, _ = counted
        parts = [(columns, min(seen.get(kind, 0), columns.rows)) for kind, columns in self._speaking(name)]
        grown = [(columns, rows) for columns, rows in parts if columns.rows > rows]
        old = [(columns, rows) for columns, rows in parts if rows]
        if not grown:
            return 0
        if len(grown) > 1:
            return None
        [(columns, rows)] = grown
        if old:
            last_time, last_step = max((each.times[seen - 1], each.steps[seen - 1]) for each, seen in old)
            if columns.times[rows:].min() < last_time and len(parts) > 1:
                return None
            steps = np.concatenate([[last_step], columns.steps[rows:]])
            if columns.process >= 0 and not np.all(np.diff(steps) > 0):
                return None  # resumed: some earlier lines no longer count
        return columns.rows - rows

    def new_events(self, cursor: Cursor | None) -> list[tuple[MetricsFile, Event]]:
        """The events read after the cursor, or the last MAX_EVENTS."""
        counted = self._counted(cursor) if cursor else None
        return self.events[max(counted[1] - self._dropped_events, 0) :] if counted else list(self.events)

    def _counted(self, cursor: Cursor) -> tuple[dict[Kind, int], int] | None:
        if (cursor.history, cursor.generation) != (self._number, self._generation):
            return None
        return next((mark[1:] for mark in reversed(self._marks) if mark[0] == cursor.version), None)

    def _speaking(self, name: str) -> list[tuple[Kind, Columns]]:
        """The columns that represent a name: those of process 0, else of the lowest process, the watchdogs last."""
        having = [(kind, columns) for kind, columns in self._columns.items() if name in columns.names]
        processes = {columns.process for _, columns in having}
        first = min(processes, key=lambda process: (process < 0, process), default=0)
        speaking = [(kind, columns) for kind, columns in having if columns.process == first]
        if first >= 0:
            return speaking
        path = min(kind[0] for kind, _ in speaking)  # every host has a watchdog: use the first
        return [(kind, columns) for kind, columns in speaking if kind[0] == path]

    def _find_files(self) -> None:
        found = {file.path: file for file in metrics_files(self.folder)}
        for path, file in found.items():
            if path not in self._readers:
                self._readers[path] = (file, LineReader(self.folder, path))
        for path in self._readers.keys() - found.keys():
            del self._readers[path]
            self._forget(path)

    def _take(self, file: MetricsFile, parsed: Parsed) -> None:
        for table in parsed.tables:
            kind = (file.path, table.process, table.names, table.irregular)
            if kind not in self._columns:
                if len(self._columns) >= MAX_KINDS:
                    self._ignored += len(table.times)
                    continue
                self._columns[kind] = Columns(table.process, table.names)
            self._columns[kind].append(table)
        while self.bytes > BUDGET_BYTES and max(self._columns.values(), key=lambda columns: columns.bytes).thin():
            self._generation += 1
        self.events += ((file, event) for event in parsed.events)
        self._dropped_events += max(len(self.events) - MAX_EVENTS, 0)
        del self.events[:-MAX_EVENTS]

    def _forget(self, path: str) -> None:
        """Drops everything read from one file."""
        self._columns = {kind: columns for kind, columns in self._columns.items() if kind[0] != path}
        self.events = [pair for pair in self.events if pair[0].path != path]
        self._generation += 1

    def _mark(self) -> None:
        """Records the current position, to resolve cursors that are handed out now."""
        rows = {kind: columns.rows for kind, columns in self._columns.items()}
        events = self._dropped_events + len(self.events)
        if not self._marks or self._marks[-1][1:] != (rows, events):
            self._version += 1
            self._marks.append((self._version, rows, events))
