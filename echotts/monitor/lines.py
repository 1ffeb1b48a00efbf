"""Metrics lines: bytes of a growing file in, tables of numbers and events out. A bad line is counted and left out.

Blocks of lines are parsed in one call and grouped by their keys, since a file holds few kinds of lines: 2 million of
them are read in seconds. What a line may be is said in docs/training.md and training/metrics.py.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import orjson

from echotts.monitor.folders import Folder

Row = dict[str, Any]
Names = tuple[str, ...]

READ_BYTES = 1 << 20  # a longer line is no metrics line
BLOCK_BYTES = 1 << 18  # parsed in one call
CHECKED_BYTES = 64  # before the place reached: if they changed, the file is another one
MAX_NAMES = 500  # of one line
MAX_NAME = 200  # characters
MAX_STEP = 2**31 - 1
MAX_MESSAGE = 1000
NEWLINE = ord("\n")
HEAD = ("time", "step", "process")
WORDS = ("event", "message")


@dataclass(frozen=True)
class Table:
    """Lines of one process with the same names, in the file's order. Null is NaN."""

    process: int
    names: Names
    times: np.ndarray  # (n,) float64, Unix s
    steps: np.ndarray  # (n,) int32
    values: np.ndarray  # (n, names) float64
    irregular: bool = False  # of events and odd lines: their place among the regular ones is told by the time alone


@dataclass(frozen=True)
class Event:
    """A line that says what happened."""

    time: float
    step: int
    process: int
    event: str
    message: str
    values: dict[str, float]


@dataclass
class Parsed:
    """What a block of lines held."""

    tables: list[Table] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    bad: int = 0


class LineReader:
    """Reads what is new in one file since the last time. `bad` and `cuts` count bad lines, and starts from anew."""

    def __init__(self, folder: Folder, path: str):
        self.path = path
        self.bad = 0
        self.cuts = 0
        self.size_bytes = 0
        self.done_bytes = 0
        self._folder = folder
        self._identity: object = None
        self._before = b""
        self._in_long_line = False

    @property
    def has_half_line(self) -> bool:
        """Whether the file ends within a line: one being written, or one that never will be."""
        return self.done_bytes < self.size_bytes or self._in_long_line

    def poll(self) -> tuple[bool, Iterator[Parsed]]:
        """(whether what was read before no longer counts, what is new). The second must be used up."""
        found = self._folder.stat(self.path)
        if found is None:
            return self._restart(None) if self.done_bytes else False, iter(())
        grown = found.size_bytes != self.size_bytes
        replaced = self._identity is not None and found.identity != self._identity
        restarted = False
        if replaced or found.size_bytes < self.done_bytes or (grown and not self._is_the_same()):
            restarted = self._restart(found.identity)
        self._identity = found.identity
        self.size_bytes = found.size_bytes
        return restarted, self._new_lines() if grown or restarted else iter(())

    def _restart(self, identity: object) -> bool:
        """Forgets the place; True if that was somewhere."""
        was_somewhere = self.done_bytes > 0
        self.cuts += was_somewhere
        self.bad = self.done_bytes = self.size_bytes = 0
        self._identity, self._before, self._in_long_line = identity, b"", False
        return was_somewhere

    def _is_the_same(self) -> bool:
        start = self.done_bytes - len(self._before)
        return self._folder.read(self.path, start, len(self._before)) == self._before

    def _new_lines(self) -> Iterator[Parsed]:
        while self.done_bytes < self.size_bytes:
            block = self._folder.read(self.path, self.done_bytes, READ_BYTES)
            whole = block.rfind(b"\n") + 1
            if not whole:
                if len(block) < READ_BYTES:
                    return  # half a line: it is read again when it has grown
                self._in_long_line = True
                self._advance(block)
                continue
            start = 0
            if self._in_long_line:
                self._in_long_line, start = False, block.index(b"\n") + 1
                self.bad += 1
            while start < whole:
                end = block.rfind(b"\n", start, start + BLOCK_BYTES) + 1 or block.index(b"\n", start) + 1
                parsed = parse(block[start:end])
                self.bad += parsed.bad
                yield parsed
                start = end
            self._advance(block[:whole])

    def _advance(self, read: bytes) -> None:
        self.done_bytes += len(read)
        self._before = (self._before + read)[-CHECKED_BYTES:]


def parse(block: bytes) -> Parsed:
    """Whole lines, each with its newline."""
    parsed = Parsed()
    _group(_rows(block, parsed), parsed)
    return parsed


def sampled(folder: Folder, path: str, size_bytes: int, blocks: int) -> Iterator[Parsed]:
    """Some lines from every part of a large file, in its order."""
    for number in range(blocks):
        start = (size_bytes - BLOCK_BYTES) * number // (blocks - 1)
        block = folder.read(path, start, BLOCK_BYTES)
        first, last = block.find(b"\n") + 1 if start else 0, block.rfind(b"\n") + 1
        if first < last:
            yield parse(block[first:last])


def _rows(block: bytes, parsed: Parsed) -> list[Row]:
    """The objects of a block of lines: all in one call, or line by line where one of them is bad."""
    try:
        rows = orjson.loads(b"[" + block[:-1].replace(b"\n", b",") + b"]")
        if len(rows) == np.count_nonzero(np.frombuffer(block, np.uint8) == NEWLINE):  # bytes.count is slow here
            return _objects(rows, parsed)
    except orjson.JSONDecodeError:
        pass
    rows = []
    for line in block.split(b"\n"):
        if line.strip():
            try:
                rows.append(orjson.loads(line))
            except orjson.JSONDecodeError:
                parsed.bad += 1
    return _objects(rows, parsed)


def _objects(rows: list[Any], parsed: Parsed) -> list[Row]:
    if set(map(type, rows)) <= {dict}:
        return rows
    objects = [row for row in rows if isinstance(row, dict)]
    parsed.bad += len(rows) - len(objects)
    return objects


def _group(rows: list[Row], parsed: Parsed) -> None:
    """Tables of rows with the same keys; as many keys are mostly the same keys."""
    lengths = set(map(len, rows))
    for length in lengths:
        alike = rows if len(lengths) == 1 else [row for row in rows if len(row) == length]
        if _fast(alike, parsed):
            continue
        plain = [row for row in alike if "event" not in row]
        if not plain or len(plain) == len(alike) or not _fast(plain, parsed):
            _carefully(alike, parsed)
        else:
            _carefully([row for row in alike if "event" in row], parsed)


def _fast(rows: list[Row], parsed: Parsed) -> bool:
    """Adds the rows as one table; False, with nothing added, where their keys differ or a value is no number."""
    names = tuple(sorted(rows[0]))
    if not {"time", "step"} <= rows[0].keys() or "event" in rows[0]:
        return False
    if len(names) > MAX_NAMES or max(map(len, names)) > MAX_NAME:
        return False
    fields, count = itemgetter(*names), len(rows) * len(names)
    try:
        try:
            values = np.fromiter(chain.from_iterable(map(fields, rows)), np.float64, count)
        except TypeError:
            numbers = chain.from_iterable(map(fields, rows))
            values = np.fromiter((math.nan if number is None else number for number in numbers), np.float64, count)
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    _add(names, values.reshape(-1, len(names)), parsed, irregular=False)
    return True


def _carefully(rows: list[Row], parsed: Parsed) -> None:
    """One row after the other: events apart, null as NaN, what is neither number nor null left out."""
    tables: dict[Names, list[list[float]]] = defaultdict(list)
    for row in rows:
        numbers = {name: number for name, value in row.items() if (number := _number(value)) is not None}
        if not {"time", "step"} <= numbers.keys() or len(row) > MAX_NAMES:
            parsed.bad += 1
            continue
        names = tuple(sorted(name for name in numbers if len(name) <= MAX_NAME and name not in WORDS))
        tables[names].append([numbers[name] for name in names])
        if isinstance(row.get("event"), str) and _is_place(numbers["time"], numbers["step"]):
            parsed.events.append(_event(row, numbers))
    for names, values in tables.items():
        _add(names, np.array(values), parsed, irregular=True)


def _add(names: Names, values: np.ndarray, parsed: Parsed, *, irregular: bool) -> None:
    """Splits times, steps and processes off and appends a table for each process."""
    good = _is_place(values[:, names.index("time")], values[:, names.index("step")])
    if not good.all():
        parsed.bad += int(np.sum(~good))
        values = values[good]
    times, steps = values[:, names.index("time")], values[:, names.index("step")].astype(np.int32)
    processes = np.nan_to_num(values[:, names.index("process")]) if "process" in names else np.zeros(len(values))
    kept = [place for place, name in enumerate(names) if name not in HEAD]
    kept_names = tuple(names[place] for place in kept)
    for process in set(processes.tolist()):
        of_process = processes == process
        rows = slice(None) if of_process.all() else of_process
        parsed.tables.append(
            Table(int(process), kept_names, times[rows], steps[rows], values[rows][:, kept], irregular)
        )


def _is_place(time: Any, step: Any) -> Any:
    """Whether a line says when and where it was written; of numbers or arrays of them."""
    return np.isfinite(time) & (step >= 0) & (step <= MAX_STEP) & (np.floor(step) == step)


def _number(value: Any) -> float | None:
    if value is None:
        return math.nan
    try:
        return float(np.float64(value)) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None


def _event(row: Row, numbers: dict[str, float]) -> Event:
    message = row.get("message")
    process = numbers.get("process", 0.0)
    return Event(
        time=numbers["time"],
        step=int(numbers["step"]),
        process=int(process) if math.isfinite(process) else 0,
        event=row["event"][:MAX_NAME],
        message=" ".join(message.split())[:MAX_MESSAGE] if isinstance(message, str) else "",
        values={name: value for name, value in numbers.items() if name not in HEAD + WORDS},
    )
