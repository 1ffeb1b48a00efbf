"""Metrics lines as tables of numbers and events. A bad line is counted and left out.

A file holds few kinds of lines, so the names that they use are learned: a block of lines that use no others becomes a
matrix without a look at any one of its numbers. What does not fit - events, torn lines, names that are new - is taken
line by line. docs/training.md and rundir/metrics.py define the lines.
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

MAX_NAMES = 500  # of one line
MAX_LEARNED = 200  # of one file: lines with more are taken one by one
MAX_SETS = 1000  # of names, that are remembered
MAX_NAME = 200  # characters
MAX_STEP = 2**31 - 1
MAX_MESSAGE = 1000
NEWLINE, OPENING, CLOSING = b"\n{}"
ESCAPED = re.compile(r'["\\\x00-\x1f]')  # in a JSON string; msgspec takes none of it in the name of a field
HEAD = ("time", "step", "process")
WORDS = ("event", "message")
ABSENT = math.inf  # which no JSON number is


@dataclass(frozen=True)
class Table:
    """Lines of one process with the same names, in the file's order. Null is NaN."""

    process: int
    names: Names
    times: np.ndarray  # (n,) float64, Unix s
    steps: np.ndarray  # (n,) int32
    values: np.ndarray  # (names, n) float64
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


class Parser:
    """Parses the blocks of one file. It learns the names that its lines use."""

    def __init__(self) -> None:
        self._shape: Shape | None = None

    def parse(self, block: Block) -> Parsed:
        """Whole lines, each with its newline."""
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
        """Adds the lines as tables, one for each set of names; False, with nothing added, where one does not fit."""
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
    """Lines of numbers and nulls under these names or some of them; written in this order they are read fastest."""

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
        head = 1 if len(names) < 16 else 3  # bytes before an array in msgpack, where every double takes nine
        self._row = np.dtype([("head", f"S{head}"), ("numbers", [("kind", "S1"), ("number", ">f8")], len(names))])
        self._columns: dict[bytes, Columns] = {}

    def columns(self, there: np.ndarray) -> "Columns":
        """The places of the names that are `there`."""
        key = there.tobytes()
        if key not in self._columns:
            if len(self._columns) >= MAX_SETS:
                self._columns.clear()
            self._columns[key] = Columns({self.names[place]: int(place) for place in np.flatnonzero(there)})
        return self._columns[key]

    def matrix(self, block: Block) -> np.ndarray | None:
        """(names, lines) float64, NaN for null, ABSENT where a line has no such name; None where a line is not so."""
        try:
            lines = self._decoder.decode_lines(block)
        except msgspec.DecodeError:
            return None
        if not _is_one_a_line(block, len(lines)):
            return None
        rows = [*map(msgspec.structs.astuple, lines)]
        packed = msgspec.msgpack.encode(rows)  # numbers at equal distances: the shortest way from lists to an array
        start = len(packed) - len(rows) * self._row.itemsize
        if not 1 <= start <= 5:  # there are nulls, which take less
            return np.array(rows, np.float64).T
        numbers = np.frombuffer(packed, self._row, offset=start)["numbers"]["number"]
        return np.ascontiguousarray(numbers.T, np.float64)


@functools.lru_cache(maxsize=64)
def shape_of(names: Names) -> Shape:
    """The shape of these names, which takes milliseconds to make."""
    return Shape(names)


def _is_one_a_line(block: Block, objects: int) -> bool:
    """Whether so many objects without objects inside are one in each line. The decoder takes any white space."""
    characters = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(characters == NEWLINE)
    return (
        len(ends) == objects
        and characters[0] == OPENING
        and ends[-1] == len(characters) - 1
        and bool((characters[ends - 1] == CLOSING).all() and (characters[ends[:-1] + 1] == OPENING).all())
    )


class Columns:
    """Where in a row of a matrix the time, step, process and the numbers are."""

    def __init__(self, places: dict[str, int]):
        self.time, self.step, self.process = (places.get(name) for name in HEAD)
        self.names = tuple(sorted(places.keys() - {*HEAD, *WORDS}))
        self.values = [places[name] for name in self.names]


def _objects(block: Block, parsed: Parsed) -> tuple[list[tuple[bytes, Row]], list[Row]]:
    """(lines that hold numbers and nulls only, with their objects; objects that hold more)."""
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
    """Events apart, null as NaN, what is neither number nor null left out."""
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
    """Appends a table for each process; lines that do not say when and where they were written are bad."""
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
