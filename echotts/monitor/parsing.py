"""Parses metrics lines to tables of numbers and events. Bad lines are counted and skipped.

A file has few kinds of lines, so the parser learns their names: a block of lines with known names becomes a matrix
without processing single numbers in Python. Events, incomplete lines and new names are parsed line by line.
docs/training.md and rundir/metrics.py define the lines.
"""

import functools
import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import orjson

Row = dict[str, Any]
Names = tuple[str, ...]
Block = bytes | memoryview

MAX_NAMES = 500  # per line
MAX_LEARNED = 200  # per file: lines with more names are parsed one by one
MAX_SETS = 1000  # cached sets of names
MAX_NAME = 200  # characters
MAX_STEP = 2**31 - 1
MAX_MESSAGE = 1000
NEWLINE, OPENING, CLOSING = b"\n{}"
ESCAPED = re.compile(r'["\\\x00-\x1f]')  # in a JSON string; msgspec does not allow these in field names
HEAD = ("time", "step", "process")
WORDS = ("event", "message")
ABSENT = math.inf  # not a valid JSON number


@dataclass(frozen=True)
class Table:
    """Lines of one process with the same names, in the file's order. Null is NaN."""

    process: int
    names: Names
    times: np.ndarray  # (n,) float64, Unix s
    steps: np.ndarray  # (n,) int32
    values: np.ndarray  # (names, n) float64
    irregular: bool = False  # events and other odd lines: only their time orders them among regular lines


@dataclass(frozen=True)
class Event:
    """A line with an event."""

    time: float
    step: int
    process: int
    event: str
    message: str
    values: dict[str, float]


@dataclass
class Parsed:
    """The contents of a block of lines."""

    tables: list[Table] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    bad: int = 0


class Parser:
    """Parses the blocks of one file, and learns the names that its lines use."""

    def __init__(self) -> None:
        self._shape: Shape | None = None

    def parse(self, block: Block) -> Parsed:
        """Parses complete lines, each ending with a newline."""
        parsed = Parsed()
        if self._all_at_once(block, parsed):
            return parsed
        plain, odd = _objects(block, parsed)
        self._learn(plain)
        if not self._all_at_once(b"".join(line + b"\n" for line, _ in plain), parsed):
            odd += [row for _, row in plain]
        _one_by_one(odd, parsed)
        return parsed

    def _learn(self, plain: list[tuple[bytes, Row]]) -> None:
        known = self._shape.names if self._shape else ()
        names = dict.fromkeys(known)
        for keys in dict.fromkeys(tuple(row) for _, row in plain):
            names |= dict.fromkeys(name for name in keys if len(name) <= MAX_NAME and not ESCAPED.search(name))
        if len(known) < len(names) <= MAX_LEARNED:
            self._shape = shape_of(tuple(names))

    def _all_at_once(self, block: Block, parsed: Parsed) -> bool:
        """Adds the lines as one table per set of names; False, adding nothing, if a line does not fit."""
        if not len(block):
            return True
        values = self._shape.matrix(block) if self._shape else None
        if values is None or self._shape is None:
            return False
        there = values != ABSENT
        while not there.all():
            alike = (there == there[:, :1]).all(axis=0)
            _add(self._shape.columns(there[:, 0]), values[:, alike], parsed)
            values, there = values[:, ~alike], there[:, ~alike]
        if values.size:
            _add(self._shape.columns(there[:, 0]), values, parsed)
        return True


class Shape:
    """A decoder of lines with numbers and nulls under some of these names; fastest if they are in this order."""

    def __init__(self, names: Names):
        self.names = names
        fields = {f"field_{place}": name for place, name in enumerate(names)}
        line = msgspec.defstruct(
            "Line",
            [(field, float | None, ABSENT) for field in fields],
            rename=fields,
            forbid_unknown_fields=True,
            gc=False,
        )
        self._decoder = msgspec.json.Decoder(line)
        head = 1 if len(names) < 16 else 3  # bytes of msgpack's array header; a double takes nine bytes
        self._row = np.dtype([("head", f"S{head}"), ("numbers", [("kind", "S1"), ("number", ">f8")], len(names))])
        self._columns: dict[bytes, Columns] = {}

    def columns(self, there: np.ndarray) -> "Columns":
        """The columns of the names marked in `there`."""
        key = there.tobytes()
        if key not in self._columns:
            if len(self._columns) >= MAX_SETS:
                self._columns.clear()
            self._columns[key] = Columns({self.names[place]: int(place) for place in np.flatnonzero(there)})
        return self._columns[key]

    def matrix(self, block: Block) -> np.ndarray | None:
        """(names, lines) float64, NaN for null, ABSENT for missing names; None if a line does not fit."""
        try:
            lines = self._decoder.decode_lines(block)
        except msgspec.DecodeError:
            return None
        if not _is_one_a_line(block, len(lines)):
            return None
        rows = [*map(msgspec.structs.astuple, lines)]
        packed = msgspec.msgpack.encode(rows)  # fixed-size numbers: the fastest way from lists to an array
        start = len(packed) - len(rows) * self._row.itemsize
        if not 1 <= start <= 5:  # there are nulls, which are shorter
            return np.array(rows, np.float64).T
        numbers = np.frombuffer(packed, self._row, offset=start)["numbers"]["number"]
        return np.ascontiguousarray(numbers.T, np.float64)


@functools.lru_cache(maxsize=64)
def shape_of(names: Names) -> Shape:
    """The shape of these names; cached, since building one takes milliseconds."""
    return Shape(names)


def _is_one_a_line(block: Block, objects: int) -> bool:
    """Whether each line is exactly one of `objects` flat objects. The decoder itself accepts any white space."""
    characters = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(characters == NEWLINE)
    return (
        len(ends) == objects
        and characters[0] == OPENING
        and ends[-1] == len(characters) - 1
        and bool((characters[ends - 1] == CLOSING).all() and (characters[ends[:-1] + 1] == OPENING).all())
    )


class Columns:
    """The positions of time, step, process and the other numbers in a row of a matrix."""

    def __init__(self, places: dict[str, int]):
        self.time, self.step, self.process = (places.get(name) for name in HEAD)
        self.names = tuple(sorted(places.keys() - {*HEAD, *WORDS}))
        self.values = [places[name] for name in self.names]


def _objects(block: Block, parsed: Parsed) -> tuple[list[tuple[bytes, Row]], list[Row]]:
    """(lines of only numbers and nulls, with their objects; other objects)."""
    plain, odd = [], []
    for line in bytes(block).split(b"\n"):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            parsed.bad += 1
        elif {type(value) for value in row.values()} <= {int, float, type(None)}:
            plain.append((line.strip(), row))
        else:
            odd.append(row)
    return plain, odd


def _one_by_one(rows: list[Row], parsed: Parsed) -> None:
    """Adds rows as events and irregular tables: null becomes NaN; other non-numbers are dropped."""
    tables: dict[Names, list[list[float]]] = defaultdict(list)
    for row in rows:
        numbers = {name: number for name, value in row.items() if (number := _number(value)) is not None}
        if not {"time", "step"} <= numbers.keys() or len(row) > MAX_NAMES:
            parsed.bad += 1
            continue
        names = tuple(name for name in numbers if len(name) <= MAX_NAME)
        tables[names].append([numbers[name] for name in names])
        if isinstance(row.get("event"), str) and _is_place(numbers["time"], numbers["step"]):
            parsed.events.append(_event(row, numbers))
    for names, values in tables.items():
        _add(Columns({name: place for place, name in enumerate(names)}), np.array(values).T, parsed, irregular=True)


def _add(columns: Columns, values: np.ndarray, parsed: Parsed, *, irregular: bool = False) -> None:
    """Appends one table per process; lines without valid time and step are bad."""
    if columns.time is None or columns.step is None:
        parsed.bad += values.shape[1]
        return
    good = _is_place(values[columns.time], values[columns.step])
    if not good.all():
        parsed.bad += int(np.sum(~good))
        values = values[:, good]
    times, steps, numbers = values[columns.time], values[columns.step].astype(np.int32), values[columns.values]
    processes = np.zeros(len(times)) if columns.process is None else values[columns.process]
    if (processes == processes[:1]).all():
        groups = [(float(process), slice(None)) for process in processes[:1]]
    else:
        processes = np.nan_to_num(processes)
        groups = [(process, processes == process) for process in set(processes.tolist())]
    for process, rows in groups:
        parsed.tables.append(Table(int(process), columns.names, times[rows], steps[rows], numbers[:, rows], irregular))


def _is_place(time: Any, step: Any) -> Any:
    """Whether time and step are valid; for numbers or arrays."""
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
