"""Parses metrics lines to tables of numbers and events. Bad lines are counted and skipped.

Lines of numbers with the same names become one array; other lines, such as events, are parsed one by one.
docs/training.md and rundir/metrics.py define the lines.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import orjson

Row = dict[str, Any]
Names = tuple[str, ...]

MAX_NAMES = 500  # per line
MAX_NAME = 200  # characters
MAX_STEP = 2**31 - 1
MAX_MESSAGE = 1000
HEAD = ("time", "step", "process")
WORDS = ("event", "message")
USUAL = 32  # equal kinds of lines in a block after which the next ones are expected to be the same
NUMBERS = msgspec.json.Decoder(dict[str, float | None])


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


def parse(block: bytes) -> Parsed:
    """Parses complete lines, each ending with a newline."""
    parsed, odd = Parsed(), []
    tables: dict[Names, list[Sequence[float | None]]] = {}
    orders: dict[frozenset[str], Names] = {}
    usual, usual_rows = None, []
    for line in block.split(b"\n"):
        try:
            alike = usual and usual.decode(line)
        except msgspec.DecodeError:
            alike = None
        if alike is not None:
            usual_rows.append(msgspec.structs.astuple(alike))
            continue
        try:
            row = NUMBERS.decode(line)
        except msgspec.DecodeError:
            odd.append(line)
            continue
        names = tuple(row)
        if names not in tables:
            if len(names) > MAX_NAMES or max(map(len, names), default=0) > MAX_NAME:
                odd.append(line)
                continue
            names = orders.setdefault(frozenset(names), names)  # one table, whatever their order in each line
            row = {name: row[name] for name in names}
        rows = tables.setdefault(names, [])
        rows.append([*row.values()])
        if usual is None and len(rows) == USUAL:
            usual, usual_rows = _decoder_of(names), rows
    for names, rows in tables.items():
        _add(Columns(names), np.array(rows, np.float64).T, parsed)
    _one_by_one(odd, parsed)
    return parsed


@functools.lru_cache(maxsize=64)  # takes milliseconds to build
def _decoder_of(names: Names) -> msgspec.json.Decoder[Any] | None:
    """A decoder for lines of exactly these names, twice as fast as the general one; None if msgspec rejects a name."""
    fields = {f"field_{place}": name for place, name in enumerate(names)}
    try:
        line = msgspec.defstruct(
            "Line", [(field, float | None) for field in fields], rename=fields, forbid_unknown_fields=True, gc=False
        )
    except ValueError:
        return None
    return msgspec.json.Decoder(line)


class Columns:
    """The positions of time, step, process and the other numbers in a row."""

    def __init__(self, names: Names):
        places = {name: place for place, name in enumerate(names)}
        self.time, self.step, self.process = (places.get(name) for name in HEAD)
        self.names = tuple(sorted(places.keys() - {*HEAD, *WORDS}))
        self.values = [places[name] for name in self.names]


def _one_by_one(lines: list[bytes], parsed: Parsed) -> None:
    """Adds lines as events and irregular tables: null becomes NaN; other non-numbers are dropped."""
    tables: dict[Names, list[list[float]]] = defaultdict(list)
    for line in filter(bytes.strip, lines):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            parsed.bad += 1
            continue
        numbers = {name: number for name, value in row.items() if (number := _number(value)) is not None}
        if not {"time", "step"} <= numbers.keys() or len(row) > MAX_NAMES:
            parsed.bad += 1
            continue
        names = tuple(name for name in numbers if len(name) <= MAX_NAME)
        tables[names].append([numbers[name] for name in names])
        if isinstance(row.get("event"), str) and _is_place(numbers["time"], numbers["step"]):
            parsed.events.append(_event(row, numbers))
    for names, values in tables.items():
        _add(Columns(names), np.array(values).T, parsed, irregular=True)


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
