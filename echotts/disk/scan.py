"""Candidates for deletion in a folder, oldest first: partial files, consumed shards, old logs. Opens no file."""

import contextlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from echotts.disk.settings import PARTIAL_NAMES
from echotts.disk.tree import MAX_DEPTH, Entry, Folder, UnusualError, is_being_written, measure_folder, walk
from echotts.rundir.layout import WRITER
from echotts.rundir.leases import process_start

LOGGER = logging.getLogger(__name__)
TRASH = re.compile(r"\.watchdog-\d+-\d+\.trash")  # left by a pass that was killed while deleting
WRITER_PID = re.compile(r"\.(\d+)\.partial")  # files.atomic_write puts its process id into the name


class Found(NamedTuple):
    """A file or folder that may be deleted, by its position below a root."""

    when: float  # time of the last write (or read, if that counts), Unix seconds
    folder: Folder
    name: str
    size_bytes: int  # on the disk
    device: int
    inode: int
    reason: str

    @property
    def why(self) -> str:
        """A description for the log: what it is, and how long it has been untouched."""
        hours = max(time.time() - self.when, 0.0) / 3600
        return f"{self.reason}, untouched for {f'{hours:.1f} h' if hours < 100 else f'{hours / 24:.0f} days'}"


OpenFiles = frozenset[tuple[int, int]]
_WARNED: set[tuple[str, str]] = set()


def open_files() -> OpenFiles:
    """(device, inode) of every file that a process has open, as far as this process may see."""
    found: set[tuple[int, int]] = set()
    for descriptor in _descriptors():
        with contextlib.suppress(OSError):  # closed since
            about = os.stat(descriptor)
            found.add((about.st_dev, about.st_ino))
    return frozenset(found)


def live_runs() -> list[Path]:
    """Run directories whose writer.lock a trainer on this host has open, as far as this process may see."""
    found: set[Path] = set()
    for descriptor in _descriptors():
        with contextlib.suppress(OSError):
            path = Path(os.readlink(descriptor))
            if path.name == WRITER and path.is_file():
                found.add(path.parent)
    return sorted(found)


def _descriptors() -> Iterator[str]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:  # the process has ended, or belongs to another user
            continue
        yield from (f"/proc/{pid}/fd/{descriptor}" for descriptor in descriptors)


def partial_files(
    root: int, patterns: tuple[str, ...], min_age_s: float, in_use: OpenFiles, *, depth: int = MAX_DEPTH
) -> Iterator[Found]:
    """Partial files and folders without a live writer, below the open folder `root`."""
    before = time.time() - min_age_s

    def wanted(name: str) -> bool:
        return _matches(name, patterns) or TRASH.fullmatch(name) is not None

    for entry in walk(root, depth=depth, take_folder=wanted):
        is_trash = TRASH.fullmatch(entry.name) is not None
        is_folder = stat.S_ISDIR(entry.stat.st_mode)
        if not wanted(entry.name) or not (is_folder or stat.S_ISREG(entry.stat.st_mode)):
            continue
        writer = WRITER_PID.search(entry.name)
        if writer and process_start(int(writer[1])) is not None:
            continue
        size_bytes, newest = entry.stat.st_blocks * 512, entry.stat.st_mtime
        if is_folder:
            try:
                size_bytes, newest = measure_folder(root, entry)
            except (OSError, UnusualError) as error:
                warn_once(root, entry, error)
                continue
        elif entry.stat.st_nlink != 1 or (entry.stat.st_dev, entry.stat.st_ino) in in_use:
            continue
        if (is_trash or newest <= before) and not is_being_written(root, entry.folder):
            reason = "left by an interrupted cleaning pass" if is_trash else "partial, no living writer"
            yield _found(entry, newest, size_bytes, reason)


def warn_once(root: int, entry: Entry, error: Exception) -> None:
    """Logs once per entry why it is kept, for reasons that would otherwise go unnoticed."""
    path = os.path.join(os.readlink(f"/proc/self/fd/{root}"), *entry.folder, entry.name)
    if isinstance(error, UnusualError) and (path, str(error)) not in _WARNED:
        _WARNED.add((path, str(error)))
        LOGGER.warning("%s: %s", path, error)


def matching_files(
    root: int, patterns: tuple[str, ...], min_age_s: float, in_use: OpenFiles, reason: str, *, reading_counts: bool
) -> Iterator[Found]:
    """Regular files that are not open and have not been written (or, if `reading_counts`, read) for `min_age_s`.

    Files with several hard links are skipped: deleting one name frees nothing.
    """
    before = time.time() - min_age_s
    for entry in walk(root):
        about = entry.stat
        when = max(about.st_mtime, about.st_atime) if reading_counts else about.st_mtime
        if (
            when <= before
            and stat.S_ISREG(about.st_mode)
            and about.st_nlink == 1
            and _matches(entry.name, patterns)
            and not _matches(entry.name, PARTIAL_NAMES)
            and (about.st_dev, about.st_ino) not in in_use
        ):
            yield _found(entry, when, about.st_blocks * 512, reason)


def _found(entry: Entry, when: float, size_bytes: int, reason: str) -> Found:
    return Found(when, entry.folder, entry.name, size_bytes, entry.stat.st_dev, entry.stat.st_ino, reason)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
