"""What may go from a folder of files: partial files, consumed shards, old logs; oldest first. Nothing is opened."""

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

from echotts.disk.settings import PARTIAL_NAMES
from echotts.rundir.leases import FOLDER_NAME, OPEN_FOLDER, process_start

MAX_DEPTH = 64
TRASH = re.compile(r"\.watchdog-\d+-\d+\.trash")  # what a pass that was killed had begun to delete
WRITER_PID = re.compile(r"\.(\d+)\.partial")  # files.atomic_write puts its process id there

Folder = tuple[str, ...]


class Found(NamedTuple):
    """A file or folder that may go, by its place below a root."""

    when: float  # last written, or read where that counts; Unix seconds
    folder: Folder
    name: str
    size_bytes: int  # on the disk
    device: int
    inode: int
    reason: str

    @property
    def why(self) -> str:
        """For people: what it is, and how long nobody has touched it."""
        hours = max(time.time() - self.when, 0.0) / 3600
        return f"{self.reason}, untouched for {f'{hours:.1f} h' if hours < 100 else f'{hours / 24:.0f} days'}"


class Entry(NamedTuple):
    """One entry of a folder, not followed where it is a symlink."""

    folder: Folder
    name: str
    stat: os.stat_result


OpenFiles = frozenset[tuple[int, int]]


def open_files() -> OpenFiles:
    """(device, inode) of every file that a process has open, as far as this one may see."""
    found: set[tuple[int, int]] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:  # it has ended, or belongs to somebody else
            continue
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # closed since
                about = os.stat(f"/proc/{pid}/fd/{descriptor}")
                found.add((about.st_dev, about.st_ino))
    return frozenset(found)


def partial_files(
    root: int, patterns: tuple[str, ...], min_age_s: float, in_use: OpenFiles, *, depth: int = MAX_DEPTH
) -> Iterator[Found]:
    """Unfinished files and folders without a living writer, below the open folder `root`."""
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
            size_bytes, newest = measure_folder(root, entry)
        elif (entry.stat.st_dev, entry.stat.st_ino) in in_use:
            continue
        if is_trash or newest <= before:
            reason = "left by a cleaning pass that was cut off" if is_trash else "partial, no living writer"
            yield _found(entry, newest, size_bytes, reason)


def matching_files(
    root: int, patterns: tuple[str, ...], min_age_s: float, in_use: OpenFiles, reason: str, *, reading_counts: bool
) -> Iterator[Found]:
    """Regular files that nobody has open and nobody has written (`reading_counts`: or read) for so long.

    A file of several names is left: deleting one of them frees nothing.
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


def walk(root: int, *, depth: int = MAX_DEPTH, take_folder: Callable[[str], bool] | None = None) -> Iterator[Entry]:
    """Every entry below an open folder but folders, on its filesystem; a folder that `take_folder` names is one too.

    Symlinks are seen, never followed; folders of leases are passed over.
    """
    device = os.fstat(root).st_dev
    yield from _walk(root, (), device, depth, take_folder)


def _walk(
    here: int, folder: Folder, device: int, depth: int, take_folder: Callable[[str], bool] | None
) -> Iterator[Entry]:
    with os.scandir(here) as entries:
        for entry in entries:
            try:
                about = entry.stat(follow_symlinks=False)
            except OSError:  # gone since
                continue
            if about.st_dev != device or entry.name == FOLDER_NAME:
                continue
            if not stat.S_ISDIR(about.st_mode) or (take_folder and take_folder(entry.name)):
                yield Entry(folder, entry.name, about)
            elif depth > 1:
                try:
                    inner = os.open(entry.name, OPEN_FOLDER, dir_fd=here)
                except OSError:
                    continue
                try:
                    yield from _walk(inner, (*folder, entry.name), device, depth - 1, take_folder)
                finally:
                    os.close(inner)


def measure_folder(root: int, entry: Entry) -> tuple[int, float]:
    """(bytes on the disk, when anything in it was last written) of a folder and all below it."""
    size_bytes, newest = entry.stat.st_blocks * 512, entry.stat.st_mtime
    for _, folders, files, here in os.fwalk("/".join((*entry.folder, entry.name)), dir_fd=root):
        for name in (*folders, *files):
            try:
                about = os.stat(name, dir_fd=here, follow_symlinks=False)
            except OSError:
                continue
            size_bytes, newest = size_bytes + about.st_blocks * 512, max(newest, about.st_mtime)
    return size_bytes, newest


def _found(entry: Entry, when: float, size_bytes: int, reason: str) -> Found:
    return Found(when, entry.folder, entry.name, size_bytes, entry.stat.st_dev, entry.stat.st_ino, reason)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
