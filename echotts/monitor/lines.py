"""Reads new lines of metrics files that grow or are truncated or replaced, as tables and events."""

from collections.abc import Iterator

from echotts.monitor.folders import Folder
from echotts.monitor.parsing import Parsed, parse

BLOCK_BYTES = 1 << 20  # read and parsed at a time; longer lines are not metrics lines
SAMPLE_BYTES = 1 << 16
CHECKED_BYTES = 64  # before the current position: if they changed, the file was replaced


class LineReader:
    """Reads new lines of one file. `bad` counts bad lines, `cuts` truncations and replacements."""

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
        """Whether the file ends with an incomplete line."""
        return self.done_bytes < self.size_bytes or self._in_long_line

    def poll(self) -> tuple[bool, Iterator[Parsed]]:
        """(whether earlier lines no longer count, iterator over new ones). The iterator must be exhausted."""
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
        """Resets the position; True if it was not at the start."""
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
            block = self._folder.read(self.path, self.done_bytes, min(self.size_bytes - self.done_bytes, BLOCK_BYTES))
            whole = block.rfind(b"\n") + 1
            if not whole:
                if len(block) < BLOCK_BYTES:
                    return  # an incomplete line: read again when it has grown
                self._in_long_line = True
                self._advance(block)
                continue
            start = 0
            if self._in_long_line:
                self._in_long_line, start = False, block.index(b"\n") + 1
                self.bad += 1
            parsed = parse(block[start:whole])
            self.bad += parsed.bad
            yield parsed
            self._advance(block[:whole])

    def _advance(self, read: bytes) -> None:
        self.done_bytes += len(read)
        self._before = (self._before + read[-CHECKED_BYTES:])[-CHECKED_BYTES:]


def sampled(folder: Folder, path: str, size_bytes: int, blocks: int) -> Iterator[Parsed]:
    """Some lines from every part of a large file, in order."""
    for number in range(blocks):
        start = (size_bytes - SAMPLE_BYTES) * number // (blocks - 1)
        block = folder.read(path, start, SAMPLE_BYTES)
        first, last = block.find(b"\n") + 1 if start else 0, block.rfind(b"\n") + 1
        if first < last:
            yield parse(block[first:last])
