"""Safe deletion: through descriptors of the folders, by device and inode, never through a symlink or a lease.

Each folder on the way is opened without following links and locked while something in it is deleted. The entry itself
is opened, compared with what the scan saw, locked, renamed to a private name, compared again, and only then deleted. If
another entry took its name in between, that one gets its name back.
"""

import contextlib
import ctypes
import itertools
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from echotts.disk.scan import Found, OpenFiles
from echotts.disk.tree import Folder, KeptError, check_no_mount_below, mount_id, tree
from echotts.files import Closing
from echotts.rundir.leases import FOLDER_NAME, OPEN_FOLDER, live_names, lock_alone

OPEN_ANY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
OPEN_TO_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
KEEP_SIZE, PUNCH_HOLE = 1, 2
LIBC = ctypes.CDLL(None, use_errno=True)
_COUNTER = itertools.count()


class OpenRoot(Closing):
    """A root held open: entries found below `descriptor` are deleted below it, even if its path changes meanwhile."""

    def __init__(self, path: Path):
        """Raises OSError if the path is not a folder or contains a symlink."""
        self.path = path
        with contextlib.ExitStack() as stack:
            parent = _open_path(path.parent)
            stack.callback(os.close, parent)
            self.descriptor = os.open(path.name, OPEN_FOLDER, dir_fd=parent)
            self._parent = parent
            self._closing = stack.pop_all()
        self._closing.callback(os.close, self.descriptor)
        self.device = os.fstat(self.descriptor).st_dev
        self.mount = mount_id(self.descriptor)
        self._way: list[tuple[str, int]] = []  # the folders currently entered, locked

    def path_of(self, found: Found) -> Path:
        """A path for messages; it is not used to open anything."""
        return self.path.joinpath(*found.folder, found.name)

    def lock(self, wait_s: float = 0.0) -> bool:
        """Excludes other passes and leases of the whole root until `close`; False if they already hold it."""
        if self._way:
            return True
        deadline = time.monotonic() + wait_s
        while True:
            try:
                self._way.append(("", self._locked(self.descriptor, ".")))
            except KeptError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.01)
            else:
                return True

    def remove(self, found: Found, in_use: OpenFiles = frozenset(), still: Callable[[], bool] = lambda: True) -> int:
        """Deletes an entry and returns the bytes it occupied on disk. Raises KeptError if it must stay.

        `still` is called once no one else can take a lease, to check that it may still be deleted.
        """
        try:
            folder = self._enter(found.folder)
            descriptor = os.open(found.name, OPEN_ANY, dir_fd=folder)
        except OSError as error:
            raise KeptError(f"cannot be opened: {error.strerror}") from error
        try:
            return _remove(folder, found, descriptor, in_use, still)
        except OSError as error:
            raise KeptError(f"cannot be deleted: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def shorten(self, found: Found, freed_bytes: int, kept_bytes: int) -> int:
        """Frees the beginning of a file that may be open for writing, but never its last `kept_bytes`.

        The freed part becomes a hole: the file keeps its length, and its writer its position. Returns the bytes freed.
        Raises KeptError if nothing can be freed.
        """
        try:
            folder = self._enter(found.folder)
            descriptor = os.open(found.name, OPEN_TO_WRITE, dir_fd=folder)
        except OSError as error:
            raise KeptError(f"cannot be opened: {error.strerror}") from error
        try:
            about = os.fstat(descriptor)
            if (about.st_dev, about.st_ino) != (found.device, found.inode) or not stat.S_ISREG(about.st_mode):
                raise KeptError("was replaced by another file")
            if not lock_alone(descriptor) or found.name in live_names(folder):
                raise KeptError("is leased")
            start = os.lseek(descriptor, 0, os.SEEK_DATA)  # after the holes of earlier passes
            length = min(freed_bytes, about.st_size - kept_bytes - start)
            if length <= 0:
                raise KeptError("nothing more of it may be freed")
            punch_hole(descriptor, start, length)
            return max(about.st_blocks - os.fstat(descriptor).st_blocks, 0) * 512
        except OSError as error:
            raise KeptError(f"cannot be shortened: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def leave(self) -> None:
        """Unlocks the entered folders, but not the root."""
        while len(self._way) > 1:
            os.close(self._way.pop()[1])

    def close(self) -> None:
        for _, descriptor in self._way:
            os.close(descriptor)
        self._way.clear()
        self._closing.close()

    def _enter(self, folder: Folder) -> int:
        """Opens and locks a folder below this root; it stays locked until another one is entered."""
        if not self.lock() or self.path.name in live_names(self._parent):
            raise KeptError(f"the root {self.path} is leased")
        names = [name for name, _ in self._way[1:]]
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(names, folder, strict=False)))
        while len(self._way) > common + 1:
            os.close(self._way.pop()[1])
        for name in folder[common:]:
            self._way.append((name, self._locked(self._way[-1][1], name)))
        return self._way[-1][1]

    def _locked(self, parent: int, name: str) -> int:
        descriptor = os.open(name, OPEN_FOLDER, dir_fd=parent)
        try:
            if mount_id(descriptor) != self.mount:
                raise KeptError("is in another mount")
            if not lock_alone(descriptor) or name in live_names(parent):
                raise KeptError(f"the folder {name} is leased")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def punch_hole(descriptor: int, start: int, length: int) -> None:
    """Deallocates a range of a file, which then reads as zeros; see fallocate(2). OSError if unsupported."""
    if LIBC.fallocate(descriptor, KEEP_SIZE | PUNCH_HOLE, ctypes.c_int64(start), ctypes.c_int64(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _remove(folder: int, found: Found, descriptor: int, in_use: OpenFiles, still: Callable[[], bool]) -> int:
    about = os.fstat(descriptor)
    if (about.st_dev, about.st_ino) != (found.device, found.inode):
        raise KeptError("was replaced by another file")
    if not lock_alone(descriptor) or found.name in live_names(folder):
        raise KeptError("is leased")
    if not still():
        raise KeptError("is needed again")
    check_no_mount_below(folder, found.name)
    is_folder = stat.S_ISDIR(about.st_mode)
    if is_folder:
        _check_inside(descriptor, found, in_use)
    elif not stat.S_ISREG(about.st_mode) or about.st_mtime > found.when:
        raise KeptError("was written again")
    with _taken_away(folder, found) as trash:
        if found.name in live_names(folder):
            raise KeptError("is leased")
        if is_folder:
            _check_inside(descriptor, found, in_use)
    if is_folder:
        shutil.rmtree(trash, dir_fd=folder)  # rmtree works with descriptors and follows no links either
        return found.size_bytes
    os.unlink(trash, dir_fd=folder)
    return about.st_blocks * 512


@contextmanager
def _taken_away(folder: int, found: Found) -> Iterator[str]:
    """Renames an entry to a private name while it is checked again; restores the name if that raises."""
    trash = f".watchdog-{os.getpid()}-{next(_COUNTER)}.trash"
    os.rename(found.name, trash, src_dir_fd=folder, dst_dir_fd=folder)
    try:
        moved = os.stat(trash, dir_fd=folder, follow_symlinks=False)
        if (moved.st_dev, moved.st_ino) != (found.device, found.inode):
            raise KeptError("another file took its name")
        yield trash
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.stat(found.name, dir_fd=folder, follow_symlinks=False)
            raise KeptError(f"another file took its name; it is now called {trash}") from None
        os.rename(trash, found.name, src_dir_fd=folder, dst_dir_fd=folder)
        raise


def _check_inside(descriptor: int, found: Found, in_use: OpenFiles) -> None:
    """KeptError if anything in this folder is leased, open, newer than the scan, on another mount or too deep."""
    for here, name, about in tree(descriptor):
        if name == FOLDER_NAME and live_names(here):
            raise KeptError("something in it is leased")
        if about.st_mtime > found.when:
            raise KeptError("was written again")
        if (about.st_dev, about.st_ino) in in_use:
            raise KeptError("something in it is open")
        if stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode):
            _check_unlocked(name, here)


def _check_unlocked(name: str, folder: int) -> None:
    descriptor = os.open(name, OPEN_ANY, dir_fd=folder)
    try:
        if not lock_alone(descriptor):
            raise KeptError("something in it is leased")
    finally:
        os.close(descriptor)


def _open_path(path: Path) -> int:
    """Opens a folder by its absolute path, component by component, so that no symlink is followed."""
    descriptor = os.open("/", OPEN_FOLDER)
    for name in path.parts[1:]:
        try:
            inner = os.open(name, OPEN_FOLDER, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor
