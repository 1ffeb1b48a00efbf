"""All numbers of one run, in memory: a column for each name and kind of line, growing as the files grow.

Columns are float32 and steps int32. Beyond BUDGET_BYTES the older lines of the longest columns are thinned: of each
four, every column keeps its least and its greatest, so that no spike is lost. Where a step occurs twice the later line
counts, and what a resumed run has left behind it does not count at all.
"""

import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from echotts.monitor.folders import Folder
from echotts.monitor.hosts import MetricsFile, metrics_files
from echotts.monitor.lines import Event, LineReader, Names, Parsed, Table, sampled

FIRST_ROWS = 1024
BUDGET_BYTES = 64 << 20  # of one run: 2 million lines of five numbers, or 600,000 of the trainer's
NEWEST = 4  # one part in so many is never thinned
MAX_KINDS = 300  # a run has about ten kinds of lines for each host; a stranger's file may name anything
MAX_EVENTS = 5000
MARKS = 1000  # cursors that are remembered
HALF_LINE_S = 5.0  # a last line that is not finished by then is counted as bad
PREVIEW_BYTES, PREVIEW_BLOCKS = 48 << 20, 64

_numbers = itertools.count(1)


class Points(NamedTuple):
    """Lines with one name, as they count, oldest first."""

    times: np.ndarray
    steps: np.ndarray
    values: np.ndarray


class Growing:
    """An array that grows by doubling. What is not written yet takes no memory."""

    def __init__(self, dtype: type):
        self._array = np.empty(FIRST_ROWS, dtype)
        self.rows = 0

    @property
    def array(self) -> np.ndarray:
        return self._array[: self.rows]

    @property
    def bytes(self) -> int:
        return self.rows * self._array.itemsize

    def extend(self, new: np.ndarray) -> None:
        rows = self.rows + len(new)
        if rows > len(self._array):
            grown = np.empty(max(rows, 2 * len(self._array)), self._array.dtype)
            grown[: self.rows] = self.array
            self._array = grown
        with np.errstate(over="ignore"):  # a number beyond float32 is infinite
            self._array[self.rows : rows] = new
        self.rows = rows

    def thin(self, older: np.ndarray, rows: int) -> None:
        """Puts `older` in the place of the first `rows`."""
        newer = self.array[rows:]
        thinned = np.empty(len(self._array), self._array.dtype)
        thinned[: len(older)] = older
        thinned[len(older) : len(older) + len(newer)] = newer
        self._array, self.rows = thinned, len(older) + len(newer)


class Columns:
    """All lines of one kind: the same file, process and names."""

    def __init__(self, table: Table):
        self.process = table.process
        self.rises = True  # each step is above the one before
        self.times, self.steps = Growing(np.float64), Growing(np.int32)
        self.values = {name: Growing(np.float32) for name in table.names}
        self.thinned = 0  # lines that are there no more

    @property
    def rows(self) -> int:
        return self.times.rows

    @property
    def bytes(self) -> int:
        return sum(column.bytes for column in (self.times, self.steps, *self.values.values()))

    def append(self, table: Table) -> None:
        last = self.steps.array[-1] if self.rows else -1
        self.rises &= bool(np.all(np.diff(table.steps, prepend=last) > 0))
        self.times.extend(table.times)
        self.steps.extend(table.steps)
        for place, name in enumerate(table.names):
            self.values[name].extend(table.values[:, place])

    def thin(self) -> None:
        """Halves what is not of the newest quarter: the least and the greatest of each four, in their order."""
        rows = self.rows * (NEWEST - 1) // NEWEST // 4 * 4
        for column in (self.times, self.steps):
            column.thin(column.array[:rows].reshape(-1, 4)[:, [0, 2]].reshape(-1), rows)
        for column in self.values.values():
            fours = column.array[:rows].reshape(-1, 4)
            least, most = np.fmin.reduce(fours, axis=1), np.fmax.reduce(fours, axis=1)
            falls = fours.argmax(axis=1) < fours.argmin(axis=1)
            pairs = np.stack([np.where(falls, most, least), np.where(falls, least, most)], axis=1)
            column.thin(pairs.reshape(-1), rows)
        self.thinned += rows // 2


Kind = tuple[str, int, Names, bool]
"""File, process, names, and whether of irregular lines."""


@dataclass
class Cursor:
    """A place in a history: up to where a page has seen it."""

    history: int
    generation: int
    version: int

    def __str__(self) -> str:
        return f"{self.history}-{self.generation}-{self.version}"

    @classmethod
    def read(cls, text: str) -> "Cursor | None":
        """What `str` wrote, or None for anything else."""
        parts = text.split("-")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 16 for part in parts):
            return None
        return cls(*map(int, parts))


class History:
    """What the metrics files of a run have said so far. `refresh` reads on; all else looks at what is there."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.lock = threading.RLock()
        self.events: list[tuple[MetricsFile, Event]] = []
        self._number = next(_numbers)
        self._generation = 0  # changes when what was told before no longer holds
        self._version = 0  # changes when there is more
        self._readers: dict[str, tuple[MetricsFile, LineReader]] = {}
        self._columns: dict[Kind, Columns] = {}
        self._marks: deque[tuple[int, dict[Kind, int], int]] = deque(maxlen=MARKS)
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
    def is_thinned(self) -> bool:
        """Whether older lines had to make room."""
        return any(columns.thinned for columns in self._columns.values())

    @property
    def cuts(self) -> int:
        """How often a file was cut or replaced."""
        return sum(reader.cuts for _, reader in self._readers.values())

    @property
    def bad(self) -> int:
        """Lines that could not be read; a last line that stays unfinished is one."""
        now = time.monotonic()
        half = 0
        for path, (_, reader) in self._readers.items():
            size, since = self._half_since.get(path, (-1, now))
            half += reader.has_half_line and size == reader.size_bytes and now - since > HALF_LINE_S
        return half + self._ignored + sum(reader.bad for _, reader in self._readers.values())

    def refresh(self) -> None:
        """Reads what is new in all metrics files of the run."""
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
        """A history of some lines from every part of the files, in a fraction of the time."""
        rough = History(self.folder)
        for file in metrics_files(self.folder):
            for parsed in sampled(self.folder, file.path, file.size_bytes, PREVIEW_BLOCKS):
                rough._take(file, parsed)
        rough._mark()
        return rough

    def known(self) -> set[str]:
        """The names there are."""
        return {name for columns in list(self._columns.values()) for name in columns.values}

    def names(self) -> dict[str, int]:
        """How many lines there are of each name, of the process that speaks for the run."""
        return {name: sum(each.rows + each.thinned for _, each in self._speaking(name)) for name in self.known()}

    def points(self, name: str) -> Points:
        """The lines with this name of the process that speaks for the run: the first that has it."""
        speaking = [columns for _, columns in self._speaking(name)]
        if not speaking:
            return Points(np.empty(0), np.empty(0, np.int32), np.empty(0))
        points = Points(*(_joined(parts) for parts in zip(*(_arrays(each, name) for each in speaking), strict=True)))
        rises = len(speaking) == 1 and speaking[0].rises
        if len(speaking) > 1:
            order = np.argsort(points.times, kind="stable")
            points = Points(*(part[order] for part in points))
        if rises or speaking[0].process < 0:  # a watchdog knows no steps
            return points
        counts = standing(points.steps)
        return Points(*(part[counts] for part in points))

    def newer(self, name: str, cursor: Cursor) -> int | None:
        """How many of `points` came after the cursor, at their end; None where those before are no longer the same."""
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
            last_time, last_step = max((each.times.array[seen - 1], each.steps.array[seen - 1]) for each, seen in old)
            if columns.times.array[rows:].min() < last_time and len(parts) > 1:
                return None
            steps = np.concatenate([[last_step], columns.steps.array[rows:]])
            if columns.process >= 0 and not np.all(np.diff(steps) > 0):
                return None  # resumed: some of what was there no longer counts
        return columns.rows - rows

    def new_events(self, cursor: Cursor | None) -> list[tuple[MetricsFile, Event]]:
        """The events that were read after the cursor, or all of the last MAX_EVENTS."""
        counted = self._counted(cursor) if cursor else None
        return self.events[max(counted[1] - self._dropped_events, 0) :] if counted else list(self.events)

    def _counted(self, cursor: Cursor) -> tuple[dict[Kind, int], int] | None:
        if (cursor.history, cursor.generation) != (self._number, self._generation):
            return None
        return next((mark[1:] for mark in reversed(self._marks) if mark[0] == cursor.version), None)

    def _speaking(self, name: str) -> list[tuple[Kind, Columns]]:
        """The kinds of lines whose numbers stand for the name: of process 0, else the lowest, the watchdog's last."""
        having = [(kind, columns) for kind, columns in self._columns.items() if name in columns.values]
        processes = {columns.process for _, columns in having}
        first = min(processes, key=lambda process: (process < 0, process), default=0)
        speaking = [(kind, columns) for kind, columns in having if columns.process == first]
        if first >= 0:
            return speaking
        path = min(kind[0] for kind, _ in speaking)  # every host has a watchdog, and one of them has to do
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
                self._columns[kind] = Columns(table)
            self._columns[kind].append(table)
        while self.bytes > BUDGET_BYTES:
            max(self._columns.values(), key=lambda columns: columns.bytes).thin()
            self._generation += 1
        self.events += ((file, event) for event in parsed.events)
        self._dropped_events += max(len(self.events) - MAX_EVENTS, 0)
        del self.events[:-MAX_EVENTS]

    def _forget(self, path: str) -> None:
        """What one file had said."""
        self._columns = {kind: columns for kind, columns in self._columns.items() if kind[0] != path}
        self.events = [pair for pair in self.events if pair[0].path != path]
        self._generation += 1

    def _mark(self) -> None:
        """Remembers how far everything is, for the cursors that are given out now."""
        rows = {kind: columns.rows for kind, columns in self._columns.items()}
        events = self._dropped_events + len(self.events)
        if not self._marks or self._marks[-1][1:] != (rows, events):
            self._version += 1
            self._marks.append((self._version, rows, events))


def _arrays(columns: Columns, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return columns.times.array, columns.steps.array, columns.values[name].array


def _joined(parts: tuple[np.ndarray, ...]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def standing(steps: np.ndarray) -> np.ndarray:
    """Which lines count, where steps were written in this order: those that no later line takes back."""
    later = np.minimum.accumulate(steps[::-1])[::-1]
    counts = np.ones(len(steps), bool)
    counts[:-1] = steps[:-1] < later[1:]
    return counts
