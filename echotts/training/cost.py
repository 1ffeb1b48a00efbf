"""Estimates the step time from a compiled TPU program; an estimate by the compiler, not measured.

Products, other fusions and copies: the compiler's own cycle counts, at the clock that gives the data sheet's peak.
Pallas kernels, for which the compiler gives no estimate: the arithmetic they declare, or their memory traffic if that
takes longer, plus a cost per grid step. Collectives: bytes over the chip's links, hidden by computation between the
start and end of asynchronous ones. Latencies of collectives, the host and the input pipeline are not included.
"""

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

from echotts.training.flops import TERA, Chip
from echotts.training.program import COLLECTIVES, Instruction, Program, array_bytes, shapes_of

KERNEL = '"tpu_custom_call"'  # call target of a Pallas kernel
KERNEL_SHARE = 0.5  # assumed share of peak for products inside an attention kernel
GRID_STEP_S = 0.35e-6  # overhead of a grid step of a Pallas kernel, from the Pallas documentation
COPIES = {"copy", "slice", "reverse", "transpose", "reshape", "pad", "concatenate", "broadcast", "convert"}
FUSED_START, FUSED_END = "async-collective-start", "async-collective-done"
COSTLIEST = 20  # operations kept by `to_dict`


@dataclass(frozen=True)
class Operation:
    """One instruction of the program, summed over all its runs in a step."""

    kind: str  # product, fusion, copy, kernel, collective
    name: str
    seconds: float
    runs: int
    source: str  # source line in this package
    op_name: str  # the JAX operation


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step on each chip, broken down; operations are sorted, costliest first."""

    products_s: float
    fusions_s: float
    copies_s: float
    kernels_s: float
    collectives_s: float
    hidden_s: float  # part of the collectives hidden behind computation
    unknown_kernels: int  # Pallas kernels that do not declare their work, counted as 0
    collectives: dict[str, int]  # runs per step
    collective_bytes: int  # received by each chip
    clock_hz: float
    operations: list[Operation] = field(repr=False)

    @property
    def compute_s(self) -> float:
        """Time estimated by the compiler: everything except Pallas kernels and collectives."""
        return self.products_s + self.fusions_s + self.copies_s

    @property
    def step_s(self) -> float:
        return self.compute_s + self.kernels_s + self.collectives_s - self.hidden_s

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable, with the costliest operations."""
        return asdict(self) | {
            "compute_s": self.compute_s,
            "step_s": self.step_s,
            "operations": [asdict(operation) for operation in self.operations[:COSTLIEST]],
        }


def estimate(text: str, chip: Chip, *, unknown_trips: int = 1) -> StepCost:
    """The cost of a program (`compiled.as_text()`) for chips of this kind; `unknown_trips`: see Program."""
    program = Program(text, unknown_trips)
    operations: list[Operation] = []
    counts, received, unknown, hidden = Counter[str](), 0, 0, 0.0
    counted: set[tuple[int, str]] = set()
    for line, runs, around in program.walk():
        found = _collective(program, line)
        # a collective that runs beside several fusions appears in each of them
        if found is not None and (id(around), found.channel) not in counted:
            counted.add((id(around), found.channel))
            kind, size = found.kind, found.received_bytes
            seconds = size / chip.one_way_bytes_s
            counts[kind] += runs
            received += runs * size
            hidden += runs * min(seconds, _between(program, line, around, chip))
            operations.append(_operation("collective", program, line, runs, seconds))
        if KERNEL in line.rest:
            seconds = kernel_s(line, chip)
            unknown += runs if seconds is None else 0
            operations.append(_operation("kernel", program, line, runs, seconds or 0.0))
        elif line.cycles:
            operations.append(_operation(_kind(program, line), program, line, runs, line.cycles / chip.clock_hz))
    spent = Counter[str]()
    for operation in operations:
        spent[operation.kind] += operation.seconds  # pyright: ignore[reportArgumentType] - a Counter of seconds
    return StepCost(
        products_s=spent["product"],
        fusions_s=spent["fusion"],
        copies_s=spent["copy"],
        kernels_s=spent["kernel"],
        collectives_s=spent["collective"],
        hidden_s=hidden,
        unknown_kernels=unknown,
        collectives=dict(counts),
        collective_bytes=received,
        clock_hz=chip.clock_hz,
        operations=sorted(operations, key=lambda operation: -operation.seconds),
    )


def kernel_s(line: Instruction, chip: Chip) -> float | None:
    """Seconds of one run of a Pallas kernel; None if it does not declare its work."""
    stated = re.search(r'"flops": ?"(\d+)"', line.rest)
    steps = re.search(r'"grid_steps": ?"(\d+)"', line.rest)
    if stated is None or steps is None:
        return None
    operands = line.rest.partition("operand_layout_constraints={")[2].partition("frontend_attributes")[0]
    moved = array_bytes(line.shapes) + array_bytes(shapes_of(operands))
    work = int(stated[1]) / (chip.peak_tflops * TERA * KERNEL_SHARE)
    return max(work, moved / (chip.hbm_gbps * 1e9)) + int(steps[1]) * GRID_STEP_S


def _operation(kind: str, program: Program, line: Instruction, runs: int, seconds: float) -> Operation:
    return Operation(kind, line.name, runs * seconds, runs, program.source(line), line.op_name)


def _kind(program: Program, line: Instruction) -> str:
    if any(inner.opcode in ("convolution", "dot") for inner in (line, *program.inside(line))):
        return "product"
    return "copy" if line.opcode in COPIES else "fusion"


@dataclass(frozen=True)
class Collective:
    kind: str
    received_bytes: int  # by each chip
    channel: str  # the channel id, or the instruction's name


def _collective(program: Program, line: Instruction) -> Collective | None:
    """The collective of an instruction, possibly inside a fusion; None for other instructions."""
    inside = list(program.inside(line))
    found = next((one for one in (line, *inside) if one.opcode.removesuffix("-start") in COLLECTIVES), None)
    if found is None:
        return None
    kind, shapes = found.opcode.removesuffix("-start"), found.shapes
    if found.opcode.endswith("-start"):  # (operands, results, counters)
        arrays = [shape for shape in shapes if shape[1]]
        shapes = arrays[len(arrays) // 2 :]
    size, ways = array_bytes(shapes), _group(found.rest)
    share = {"all-reduce": 2 * (ways - 1) / ways, "reduce-scatter": ways - 1, "collective-permute": 1}
    if kind == "all-reduce" and any(one.opcode == "dynamic-slice" for one in inside):
        kind, share = "reduce-scatter", {}
    channel = re.search(r"channel_id=(\d+)", found.rest)
    return Collective(kind, int(size * share.get(kind, (ways - 1) / ways)), channel[1] if channel else found.name)


def _group(attributes: str) -> int:
    """Number of participating chips: replica_groups given by mesh axes, as [groups,chips], or as lists.

    Raises ValueError for another form: such a collective would otherwise count as nothing.
    """
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):  # perhaps with device_ids
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        return prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes[2]))
    if grid := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(grid[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(listed[1].split(","))
    if given := re.search(r"replica_groups=.{0,60}", attributes):
        raise ValueError(f"{given[0]}: this form of a collective's groups is unknown: install the pinned libtpu")
    return 1


def _between(program: Program, line: Instruction, around: list[Instruction], chip: Chip) -> float:
    """Seconds of computation between the start and the end of a collective; 0 if it is not asynchronous.

    Starts are instructions such as all-gather-start, named by their end, or fusions around a collective, whose end is a
    fusion around the same collective.
    """
    seconds = 0.0
    if line.opcode.endswith("-start"):
        ends = (one for one in around if one.opcode.endswith("-done") and re.search(rf"%{line.name}\b", one.rest))
    elif line.name.startswith(FUSED_START):
        channel = _collective(program, line)
        ends = (one for one in around if one.name.startswith(FUSED_END) and _collective(program, one) == channel)
    else:
        return seconds
    end = next(ends, line)
    for other in around[around.index(line) + 1 : around.index(end)]:
        seconds += other.cycles / chip.clock_hz
        seconds += (kernel_s(other, chip) or 0.0) if KERNEL in other.rest else 0.0
    return seconds
