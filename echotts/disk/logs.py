"""Logs that may take only so much: beyond it the oldest go; what is being written loses its beginning."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from echotts.disk import scan
from echotts.disk.candidates import Place

KEPT_BYTES = 1 << 20  # of a log that is being written: its end, where what went wrong stands


class Excess(NamedTuple):
    """A log, and how to free so many bytes of it."""

    found: scan.Found
    size_bytes: int
    why: str
    remove: Callable[[], int]


def beyond_cap(place: Place, in_use: scan.OpenFiles) -> Iterator[Excess]:
    """What has to go for a root of logs to keep to its `max_gib`, in order.

    Closed files go first, the oldest of them before the others; open ones, the largest first, are shortened.
    """
    root, cap_bytes = place.root, int(place.rule.max_gib * 2**30)
    reason = f"log beyond max_gib = {place.rule.max_gib:g}"
    if place.rule.kind != "logs" or not cap_bytes:
        return
    every = scan.matching_files(root.descriptor, place.rule.patterns, 0.0, frozenset(), reason, reading_counts=False)
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
        why = f"{reason}, open: its beginning"
        yield Excess(one, part, why, lambda one=one, part=part: root.shorten(one, part, KEPT_BYTES))
