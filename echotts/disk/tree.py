"""Walks folders below a root through descriptors, never into another mount or deeper than MAX_DEPTH.

Mounts are distinguished by id (/proc/self/fdinfo), since a bind mount of the same file system has the same device
number.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from echotts.rundir.layout import WRITER
from echotts.rundir.leases import FOLDER_NAME, OPEN_FOLDER, is_leased

MAX_DEPTH = 64
MOUNTS = Path("/proc/self/mountinfo")

Folder = tuple[str, ...]


class KeptError(Exception):
    """Something was not deleted; the message says why."""


class UnusualError(KeptError):
    """A folder was kept because of its contents. It would stay forever, so this is worth a warning."""


class Entry(NamedTuple):
    """One entry of a folder; symlinks are not followed."""

    folder: Folder
    name: str
    stat: os.stat_result


def mount_id(descriptor: int) -> int:
    """The mount id of an open file or folder; see proc_pid_fdinfo(5)."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def check_no_mount_below(folder: int, name: str) -> None:
    """UnusualError if `name` in an open folder, or anything below it, is a mount point."""
    path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
    for line in MOUNTS.read_bytes().splitlines():
        mounted = os.fsdecode(line.split()[4].decode("unicode_escape").encode("latin-1"))
        if mounted == path or mounted.startswith(f"{path}/"):
            raise UnusualError(f"not deleted: {mounted} is a mount point")


def walk(root: int, *, depth: int = MAX_DEPTH, take_folder: Callable[[str], bool] | None = None) -> Iterator[Entry]:
    """Every non-folder below an open folder, on its mount, and the folders selected by `take_folder`.

    Symlinks are yielded but never followed; lease folders, other mounts and deeper levels are skipped.
    """
    yield from _walk(root, (), mount_id(root), depth, take_folder)


def tree(descriptor: int) -> Iterator[tuple[int, str, os.stat_result]]:
    """(open folder, name, stat) of everything below an open folder.

    UnusualError if something is on another mount or deeper than MAX_DEPTH; OSError if it changes meanwhile.
    """
    yield from _tree(descriptor, mount_id(descriptor), MAX_DEPTH)


def measure_folder(root: int, entry: Entry) -> tuple[int, float]:
    """(bytes on disk, time of the last write) of a folder and everything below it. Raises like `tree`."""
    size_bytes, newest = entry.stat.st_blocks * 512, entry.stat.st_mtime
    descriptor = os.open("/".join((*entry.folder, entry.name)), OPEN_FOLDER, dir_fd=root)
    try:
        for _, _, about in tree(descriptor):
            size_bytes, newest = size_bytes + about.st_blocks * 512, max(newest, about.st_mtime)
    finally:
        os.close(descriptor)
    return size_bytes, newest


@contextlib.contextmanager
def opened(root: int, folder: Folder) -> Iterator[int | None]:
    """Opens a folder below an open one, not through links and not on another mount; None if there is none."""
    here = os.dup(root)
    try:
        mount = mount_id(root)
        for name in folder:
            inner = os.open(name, OPEN_FOLDER, dir_fd=here)
            os.close(here)
            here = inner
        if folder and mount_id(here) != mount:
            raise NotADirectoryError(f"{'/'.join(folder)} is on another mount")
    except OSError:
        os.close(here)
        yield None
        return
    try:
        yield here
    finally:
        os.close(here)


def is_being_written(root: int, folder: Folder) -> bool:
    """Whether `folder` below an open root, or the root's parent, belongs to a run directory with a live trainer.

    Partial files there are not stale, however old."""
    for length in range(len(folder) + 1):
        with opened(root, folder[:length]) as here:
            if here is not None and is_leased(here, WRITER):
                return True
    with contextlib.suppress(OSError):
        parent = os.open("..", OPEN_FOLDER, dir_fd=root)
        try:
            return is_leased(parent, WRITER)
        finally:
            os.close(parent)
    return False


def _walk(
    here: int, folder: Folder, mount: int, depth: int, take_folder: Callable[[str], bool] | None
) -> Iterator[Entry]:
    with os.scandir(here) as entries:
        for entry in entries:
            try:
                about = entry.stat(follow_symlinks=False)
            except OSError:  # deleted meanwhile
                continue
            if entry.name == FOLDER_NAME:
                continue
            if not stat.S_ISDIR(about.st_mode) or (take_folder and take_folder(entry.name)):
                yield Entry(folder, entry.name, about)
            elif depth > 1:
                try:
                    inner = os.open(entry.name, OPEN_FOLDER, dir_fd=here)
                except OSError:
                    continue
                try:
                    if mount_id(inner) == mount:
                        yield from _walk(inner, (*folder, entry.name), mount, depth - 1, take_folder)
                finally:
                    os.close(inner)


def _tree(here: int, mount: int, depth: int) -> Iterator[tuple[int, str, os.stat_result]]:
    if depth < 1:
        raise UnusualError(f"not deleted: folders are nested more than {MAX_DEPTH} deep")
    for name in os.listdir(here):
        about = os.stat(name, dir_fd=here, follow_symlinks=False)
        yield here, name, about
        if stat.S_ISDIR(about.st_mode):
            inner = os.open(name, OPEN_FOLDER, dir_fd=here)
            try:
                if mount_id(inner) != mount:
                    raise UnusualError(f"not deleted: {name} is a mount point")
                yield from _tree(inner, mount, depth - 1)
            finally:
                os.close(inner)
