"""Parses the text of a compiled TPU program (`compiled.as_text()`) into instructions with run counts and source lines.

The TPU compiler annotates fusions and copies of the scheduled program with `estimated_cycles`. The call graph is
followed, counting the body of a loop as often as the loop runs.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
PACKAGE = "/echotts/"
TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?)(?<![\w(])([a-z][a-z0-9\-]*)\((.*)$", re.DOTALL)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SHAPE = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]")
_FIELD = re.compile(r"(\w+)=(\d+)")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation. `rest` is everything after the opcode: operands, attributes, metadata."""

    name: str
    result: str
    opcode: str
    rest: str = field(repr=False)

    @property
    def cycles(self) -> int:
        """The compiler's estimate for one run; 0 if there is none."""
        found = _CYCLES.search(self.rest)
        return int(found[1]) if found else 0

    @property
    def op_name(self) -> str:
        """The JAX operation that it was compiled from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @cached_property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """(dtype, dimensions) of each array of the result."""
        return shapes_of(self.result)

    def called(self, key: str) -> str:
        """The computation named by an attribute: calls, body, condition, to_apply."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""


class Program:
    """Computations by name, and the tables of source locations."""

    def __init__(self, text: str, unknown_trips: int = 1):
        """`unknown_trips`: assumed runs of a loop whose bound is not a constant of the program."""
        self.unknown_trips = unknown_trips
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        self._tables: dict[str, dict[int, str]] = {}
        current: list[Instruction] | None = None
        table: dict[int, str] = {}
        for line in _whole_lines(text):
            if head := _COMPUTATION.match(line):
                current = self.computations[head[2]] = []
                self.entry = head[2] if head[1] else self.entry
            elif line == "}":
                current = None
            elif current is not None and (found := _INSTRUCTION.match(line)):
                current.append(Instruction(*found.groups()))
            elif line in TABLES:
                table = self._tables[line] = {}
            elif line[:1].isdigit():
                number, value = line.split(" ", 1)
                table[int(number)] = value.strip('"')

    def walk(self, name: str = "", runs: int = 1) -> Iterator[tuple[Instruction, int, list[Instruction]]]:
        """Every executed instruction with its number of runs and its computation; of branches only the longest."""
        lines = self.computations[name or self.entry]
        for line in lines:
            if line.opcode == "while":
                yield from self.walk(line.called("body"), runs * self.trips(line))
            elif line.opcode == "call":
                yield from self.walk(line.called("to_apply"), runs)
            elif line.opcode == "conditional":
                yield from self.walk(max(self._branches(line), key=self._cycles), runs)
            else:
                yield line, runs, lines

    def inside(self, line: Instruction) -> Iterator[Instruction]:
        """The instructions that a fusion, or an asynchronous start, consists of."""
        for inner in self.computations.get(line.called("calls"), []):
            yield inner
            yield from self.inside(inner)

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: the constant in its condition, divided by the step of a windowed einsum."""
        condition = self.computations[loop.called("condition")]
        lines = [*condition, *(inner for line in condition for inner in self.inside(line))]
        bounds = [
            int(found[1]) for line in lines if line.opcode == "constant" and (found := re.match(r"(\d+)\)", line.rest))
        ]
        step = 2 if "windowed_dot" in loop.called("body") else 1
        return max(bounds, default=self.unknown_trips) // step or 1

    def source(self, line: Instruction) -> str:
        """ "file:line function" of the innermost frame in this package, otherwise of the innermost frame."""
        found = re.search(r"stack_frame_id=(\d+)", line.rest)
        number, first = int(found[1]) if found else 0, ""
        while row := self._tables.get("StackFrames", {}).get(number):
            frame = _fields(row)
            location = _fields(self._tables["FileLocations"][frame["file_location_id"]])
            path = self._tables["FileNames"][location["file_name_id"]]
            function = self._tables["FunctionNames"][location["function_name_id"]].replace(".<locals>", "")
            place = f"{path.rpartition(PACKAGE)[2]}:{location['line']} {function}"
            if PACKAGE in path:
                return place
            first = first or place
            number = frame["parent_frame_id"] - 1  # frames count from 1, and 1 here means none
        return first

    def _branches(self, line: Instruction) -> list[str]:
        named = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
        if named:
            return re.findall(r"%?([\w.\-]+)", named[1])
        return [line.called("true_computation"), line.called("false_computation")]

    def _cycles(self, name: str) -> int:
        return sum(line.cycles * runs for line, runs, _ in self.walk(name))


def shapes_of(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, dimensions) of each array in a piece of program text."""
    return [(dtype, tuple(map(int, filter(None, dims.split(","))))) for dtype, dims in _SHAPE.findall(text)]


def array_bytes(shapes: list[tuple[str, tuple[int, ...]]]) -> int:
    """Total bytes of arrays, without tile padding."""
    return sum(BYTES[dtype] * prod(dimensions) for dtype, dimensions in shapes)


def _fields(row: str) -> dict[str, int]:
    return {name: int(value) for name, value in _FIELD.findall(row)}


def _whole_lines(text: str) -> Iterator[str]:
    """Lines; those with a kernel's metadata are joined to their instruction."""
    held = ""
    for line in text.splitlines():
        if line.startswith(('"', "}}")):
            held += line
            continue
        if held:
            yield held
        held = line
    yield held
