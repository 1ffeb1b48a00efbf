"""Reads parts of large metrics files in subprocesses, so that the server stays responsive and uses several cores.

    python -m echotts.monitor.digest FOLDER PATH START END THINNED

writes the lines between two bytes, as arrays. Every kind of line with many rows is thinned THINNED times, a number
computed in advance such that all parts together fit the memory budget of a history.
"""

import contextlib
import logging
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import orjson

from echotts.monitor.columns import Columns, halved
from echotts.monitor.folders import Folder, open_folder
from echotts.monitor.lines import BLOCK_BYTES, SAMPLE_BYTES, LineReader, sampled
from echotts.monitor.parsing import Event, Names, Table

LOGGER = logging.getLogger(__name__)

PART_BYTES = 64 << 20  # minimum per process, except the first
MAX_PROCESSES = 4
PATIENCE_S = 600.0
NICE = 10  # training on the same host has priority
SAMPLES = 8  # blocks of a file, to estimate its size in memory
MAX_EVENTS = 5000
BATCH_ROWS = 1 << 14  # rows thinned at a time; kinds with fewer lines are not thinned


@dataclass
class Digest:
    """The result for a part of a file. `columns` are pairs with whether the lines are irregular."""

    columns: list[tuple[Columns, bool]]
    events: list[Event]
    bad: int
    end_bytes: int


def read(folder: Folder, path: str, size_bytes: int, budget_bytes: int) -> list[Digest] | None:
    """The parts of the file up to the last line end before `size_bytes`, in about `budget_bytes`; None on failure."""
    wanted = min(MAX_PROCESSES, os.cpu_count() or 1, -(-size_bytes // PART_BYTES))
    ends = [_line_end(folder, path, size_bytes * part // wanted) for part in range(1, wanted + 1)]
    thinned = _how_often(folder, path, ends[-1], budget_bytes)
    if 0 in ends or thinned is None:
        return None
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in spans]
        processes = []
        try:
            for (start, end), output in zip(spans, outputs, strict=True):
                processes.append(_start(folder.spec, path, start, end, thinned, output))
            codes = [process.wait(PATIENCE_S) for process in processes]
            if any(codes):
                raise OSError(f"a process reading part of it exited with code {max(codes, key=abs)}")
            return [_unpacked(output) for output in outputs]
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            LOGGER.warning("%s: %s: reading it in this process instead", path, error)
            return None
        finally:
            for process in processes:
                process.kill()


def _line_end(folder: Folder, path: str, near: int) -> int:
    """The last line end before byte `near`; 0 if there is none within a block."""
    start = max(near - BLOCK_BYTES, 0)
    return start + folder.read(path, start, near - start).rfind(b"\n") + 1 if near else 0


def _how_often(folder: Folder, path: str, size_bytes: int, budget_bytes: int) -> int | None:
    """How often lines must be thinned to fit, estimated from a sample; None if none can be read."""
    tables = [table for parsed in sampled(folder, path, size_bytes, SAMPLES) for table in parsed.tables]
    kept_bytes = sum(len(table.times) * Columns(table.process, table.names).row_bytes for table in tables)
    share = kept_bytes / (SAMPLES * SAMPLE_BYTES)
    return max(math.ceil(math.log2(share * size_bytes / budget_bytes)), 0) if tables else None


def _start(spec: str, path: str, start: int, end: int, thinned: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "echotts.monitor.digest", spec, path, *map(str, (start, end, thinned))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, env=environment)


def _unpacked(file: IO[bytes]) -> Digest:
    """Parses the output of `main`."""
    file.seek(0)
    said = orjson.loads(np.load(file, allow_pickle=False).tobytes())
    found = []
    for kind in said["kinds"]:
        columns = Columns(kind["process"], tuple(kind["names"]))
        times, steps, values = (np.load(file, allow_pickle=False) for _ in range(3))
        start = 0
        for thinned, rows in kind["parts"]:
            part = slice(start, start + rows)
            columns.extend(times[part], steps[part], values[:, part], thinned)
            start += rows
        found.append((columns, kind["irregular"]))
    return Digest(found, [_event(**row) for row in said["events"]], said["bad"], said["end_bytes"])


def _event(values: dict[str, float | None], **words: Any) -> Event:
    return Event(values={name: math.nan if value is None else value for name, value in values.items()}, **words)


class Part:
    """The lines kept of one part of a file."""

    def __init__(self, thinned: int):
        self._thinned = thinned
        self._kept: dict[tuple[int, Names, bool], Columns] = {}
        self._new: dict[tuple[int, Names, bool], Columns] = {}

    def take(self, table: Table) -> None:
        kind = (table.process, table.names, table.irregular)
        if kind not in self._kept:
            self._kept[kind], self._new[kind] = (Columns(table.process, table.names) for _ in range(2))
        self._new[kind].append(table)
        if self._new[kind].rows >= BATCH_ROWS:
            self._thin(kind)

    def columns(self) -> list[tuple[Columns, bool]]:
        """All columns, with whether they are of irregular lines."""
        for kind, new in self._new.items():
            if self._kept[kind].rows:
                self._thin(kind)
                new = self._new[kind]
            self._kept[kind].extend(new.times, new.steps, new.values)
        return [(columns, kind[2]) for kind, columns in self._kept.items()]

    def _thin(self, kind: tuple[int, Names, bool]) -> None:
        """Thins new lines and moves them to the kept ones, except for a remainder that does not divide evenly."""
        new = self._new[kind]
        even = new.rows >> self._thinned + 1 << self._thinned + 1
        times, steps, values = new.times[:even], new.steps[:even], new.values[:, :even]
        for _ in range(self._thinned):
            times, steps, values = halved(times, spikes=False), halved(steps, spikes=False), halved(values, spikes=True)
        self._kept[kind].extend(times, steps, values, self._thinned)
        self._new[kind] = Columns(new.process, new.names)
        self._new[kind].extend(new.times[even:], new.steps[even:], new.values[:, even:])


def main() -> None:
    spec, path, start, end, thinned = sys.argv[1:]
    os.nice(NICE)
    reader, part, events = LineReader(open_folder(spec), path), Part(int(thinned)), []
    for parsed in reader.between(int(start), int(end)):
        for table in parsed.tables:
            part.take(table)
        events += parsed.events
    found = part.columns()
    kinds = [
        {"process": columns.process, "names": columns.names, "irregular": irregular, "parts": columns.parts}
        for columns, irregular in found
    ]
    said = {"kinds": kinds, "events": events[-MAX_EVENTS:], "bad": reader.bad, "end_bytes": reader.done_bytes}
    np.save(sys.stdout.buffer, np.frombuffer(orjson.dumps(said), np.uint8))
    for columns, _ in found:
        for array in (columns.times, columns.steps, columns.values):
            np.save(sys.stdout.buffer, array)


if __name__ == "__main__":
    main()
