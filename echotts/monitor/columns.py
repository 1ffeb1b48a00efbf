"""Growing arrays of the numbers of one kind of line; older parts can be thinned without losing spikes."""

from bisect import bisect_left

import numpy as np

from echotts.monitor.parsing import Names, Table

FIRST_ROWS = 1024
NEWEST = 4  # 1/NEWEST of the rows, the newest, is never thinned


class Columns:
    """All lines with the same file, process and names. Values are float32, steps int32, times float64.

    `parts`, oldest first, are (how often thinned, rows): each row of a part stands for the same number of lines.
    """

    def __init__(self, process: int, names: Names):
        self.process = process
        self.names = names
        self.rows = 0
        self.parts: list[tuple[int, int]] = []
        self._places = {name: place for place, name in enumerate(names)}
        self._times = np.empty(FIRST_ROWS)
        self._steps = np.empty(FIRST_ROWS, np.int32)
        self._values = np.empty((len(names), FIRST_ROWS), np.float32)
        self._standing: np.ndarray | None = None  # rows that count; None: all, since steps increase
        self._stands = 0  # how many of them

    @property
    def times(self) -> np.ndarray:
        return self._times[: self.rows]

    @property
    def steps(self) -> np.ndarray:
        return self._steps[: self.rows]

    @property
    def values(self) -> np.ndarray:
        """(names, rows)"""
        return self._values[:, : self.rows]

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes

    @property
    def thinned(self) -> int:
        """Number of lines removed by thinning."""
        return sum(rows * (2**times - 1) for times, rows in self.parts)

    @property
    def row_bytes(self) -> int:
        return 12 + 4 * len(self.names)

    @property
    def standing(self) -> np.ndarray | slice:
        """The rows that count: those not superseded by a later line with the same or a lower step."""
        return slice(0, self.rows) if self._standing is None else self._standing[: self._stands]

    def of(self, name: str) -> np.ndarray:
        return self._values[self._places[name], : self.rows]

    def append(self, table: Table) -> None:
        """Appends lines that are newer than all present."""
        start, self.rows = self.rows, self.rows + len(table.times)
        if self.rows > len(self._times):
            self._grow(max(self.rows, 2 * len(self._times)))
        self._times[start : self.rows] = table.times
        self._steps[start : self.rows] = table.steps
        with np.errstate(over="ignore"):  # a number beyond float32 is infinite
            self._values[:, start : self.rows] = table.values
        self.parts = _merged([*self.parts, (0, len(table.times))])
        self._cross_out(start)

    def thin(self) -> bool:
        """Halves the largest part, except for the newest rows; False if there is too little to thin."""
        most, begin, chosen, start = 0, 0, 0, 0
        for number, (_, rows) in enumerate(self.parts):
            thinnable = min(rows, self.rows - self.rows // NEWEST - start)
            if thinnable >= most:
                most, begin, chosen = thinnable, start, number
            start += rows
        count = most // 4 * 4
        if count <= 0:
            return False
        end, kept, capacity = begin + count, self.rows - count // 2, len(self._times)
        pairs = slice(begin, begin + count // 2)
        part = slice(begin, end)
        for array in (self._times, self._steps, self._values):
            array[..., pairs] = halved(array[..., part], spikes=array is self._values)
            array[..., pairs.stop : kept] = array[..., end : self.rows].copy()
        thinned, rows = self.parts[chosen]
        split = [(thinned + 1, count // 2), (thinned, rows - count)]
        self.parts = _merged([*self.parts[:chosen], *split, *self.parts[chosen + 1 :]])
        self.rows = kept
        if 4 * kept < capacity:
            self._grow(2 * kept)
        self._standing, self._stands = None, 0
        self._cross_out(0)
        return True

    def _grow(self, capacity: int) -> None:
        """Reallocates arrays for `capacity` rows. Unwritten rows take no memory."""
        for name in ("_times", "_steps", "_values"):
            old = getattr(self, name)
            new = np.empty((*old.shape[:-1], capacity), old.dtype)
            rows = min(self.rows, old.shape[-1])
            new[..., :rows] = old[..., :rows]
            setattr(self, name, new)

    def _cross_out(self, start: int) -> None:
        """Updates `standing` for the rows from `start` on."""
        steps = self._steps[start : self.rows]
        if self._standing is None:
            if (start == 0 or steps[0] > self._steps[start - 1]) and bool(np.all(np.diff(steps) > 0)):
                return
            self._standing, self._stands = np.arange(start, dtype=np.int32), start
        kept, least = self._standing, steps.min()
        still = bisect_left(range(self._stands), least, key=lambda place: self._steps[kept[place]])
        new = start + np.flatnonzero(standing(steps)).astype(np.int32)
        if still + len(new) > len(self._standing):
            self._standing = np.resize(self._standing, 2 * (still + len(new)))
        self._standing[still : still + len(new)] = new
        self._stands = still + len(new)


def halved(rows: np.ndarray, *, spikes: bool) -> np.ndarray:
    """Keeps the first and third of every four rows; with `spikes`, the minimum and maximum in their order."""
    first, second, third, fourth = (rows[..., place::4] for place in range(4))
    pairs = np.empty((*rows.shape[:-1], rows.shape[-1] // 2), rows.dtype)
    if not spikes:
        pairs[..., 0::2], pairs[..., 1::2] = first, third
        return pairs
    early, late = np.fmin(first, second), np.fmin(third, fourth)
    least = np.fmin(early, late)
    highest, later = np.fmax(first, second), np.fmax(third, fourth)
    most = np.fmax(highest, later)
    before = (highest == most) & ~(early == least)  # maximum in the first half, minimum in the second
    within = np.where(early == least, (highest == most) & (first > second), (third > fourth) & ~(highest == most))
    falls = before | within
    pairs[..., 0::2], pairs[..., 1::2] = np.where(falls, most, least), np.where(falls, least, most)
    return pairs


def standing(steps: np.ndarray) -> np.ndarray:
    """Which lines count, given their steps in order of writing: those not superseded by a later line."""
    later = np.minimum.accumulate(steps[::-1])[::-1]
    counts = np.ones(len(steps), bool)
    counts[:-1] = steps[:-1] < later[1:]
    return counts


def _merged(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merges neighbours that are thinned equally, and drops empty parts."""
    merged: list[tuple[int, int]] = []
    for thinned, rows in parts:
        if merged and merged[-1][0] == thinned:
            rows += merged.pop()[1]
        if rows:
            merged.append((thinned, rows))
    return merged
