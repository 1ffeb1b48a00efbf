"""Size caps for logs: the oldest closed files are deleted first; open ones are truncated at the beginning."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from echotts.disk import scan
from echotts.disk.candidates import Target

KEPT_BYTES = 1 << 20  # kept at the end of an open log, where errors are


class Excess(NamedTuple):
    """A log, and how to free some or all of it."""

    found: scan.Found
    size_bytes: int
    why: str
    remove: Callable[[], int]


def beyond_cap(target: Target, in_use: scan.OpenFiles) -> Iterator[Excess]:
    """What to delete, in order, to keep a root of logs below its `max_gib`.

    Closed files come first, oldest first; then open ones, largest first, which are shortened.
    """
    root, cap_bytes = target.root, int(target.rule.max_gib * 2**30)
    reason = f"log beyond max_gib = {target.rule.max_gib:g}"
    if target.rule.kind != "logs" or not cap_bytes:
        return
    every = scan.matching_files(root.descriptor, target.rule.patterns, 0.0, frozenset(), reason, reading_counts=False)
    found = sorted(every)
    excess = sum(one.size_bytes for one in found) - cap_bytes
    being_written = [one for one in found if (one.device, one.inode) in in_use]
    for one in found:
        if excess <= 0:
            return
        if (one.device, one.inode) not in in_use:
            excess -= one.size_bytes
            yield Excess(one, one.size_bytes, one.why, lambda one=one: root.remove(one, in_use))
    for one in sorted(being_written, key=lambda one: -one.size_bytes):
        part = min(excess, one.size_bytes - KEPT_BYTES)
        if part <= 0:
            return
        excess -= part
        why = f"{reason}, truncating the beginning of an open file"
        yield Excess(one, part, why, lambda one=one, part=part: root.shorten(one, part, KEPT_BYTES))
