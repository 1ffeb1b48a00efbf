"""Folders below a root: walked through descriptors, never into another mount or deeper than MAX_DEPTH.

A mount is told by its id (/proc/self/fdinfo), since a bind mount of the same filesystem has the same device number.
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
    """Something was not deleted; says why."""


class UnusualError(KeptError):
    """A tree that is left whole because of what is in it: worth a warning, since it would stay forever."""


class Entry(NamedTuple):
    """One entry of a folder, not followed where it is a symlink."""

    folder: Folder
    name: str
    stat: os.stat_result


def mount_id(descriptor: int) -> int:
    """The mount that an open file or folder is in; see proc_pid_fdinfo(5)."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def check_no_mount_below(folder: int, name: str) -> None:
    """UnusualError where something is mounted on `name` in an open folder, or below it: a folder or a single file."""
    path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
    for line in MOUNTS.read_bytes().splitlines():
        mounted = os.fsdecode(line.split()[4].decode("unicode_escape").encode("latin-1"))
        if mounted == path or mounted.startswith(f"{path}/"):
            raise UnusualError(f"{mounted} is a mount point: left whole")


def walk(root: int, *, depth: int = MAX_DEPTH, take_folder: Callable[[str], bool] | None = None) -> Iterator[Entry]:
    """Every entry below an open folder but folders, in its mount; a folder that `take_folder` names is one too.

    Symlinks are seen, never followed; folders of leases, other mounts and what is deeper are passed over.
    """
    yield from _walk(root, (), mount_id(root), depth, take_folder)


def tree(descriptor: int) -> Iterator[tuple[int, str, os.stat_result]]:
    """(open folder, name, stat) of all that is below an open folder.

    UnusualError where something is in another mount or deeper than MAX_DEPTH; OSError where it changes meanwhile.
    """
    yield from _tree(descriptor, mount_id(descriptor), MAX_DEPTH)


def measure_folder(root: int, entry: Entry) -> tuple[int, float]:
    """(bytes on the disk, when anything in it was last written) of a folder and all below it. Raises as `tree`."""
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
    """A folder below an open one, reached through no link and in no other mount; None where there is none."""
    here = os.dup(root)
    try:
        mount = mount_id(root)
        for name in folder:
            inner = os.open(name, OPEN_FOLDER, dir_fd=here)
            os.close(here)
            here = inner
        if folder and mount_id(here) != mount:
            raise NotADirectoryError(f"{'/'.join(folder)} is in another mount")
    except OSError:
        os.close(here)
        yield None
        return
    try:
        yield here
    finally:
        os.close(here)


def is_being_written(root: int, folder: Folder) -> bool:
    """Whether `folder` below an open root lies in a run directory that a trainer writes now, the root's own parents
    included: what is half written there is not stale, however old."""
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
            except OSError:  # gone since
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
        raise UnusualError(f"folders are nested more than {MAX_DEPTH} deep: left whole")
    for name in os.listdir(here):
        about = os.stat(name, dir_fd=here, follow_symlinks=False)
        yield here, name, about
        if stat.S_ISDIR(about.st_mode):
            inner = os.open(name, OPEN_FOLDER, dir_fd=here)
            try:
                if mount_id(inner) != mount:
                    raise UnusualError(f"{name} is a mount point: left whole")
                yield from _tree(inner, mount, depth - 1)
            finally:
                os.close(inner)
