"""How something goes: through descriptors of its folders, by device and inode, never through a symlink or a lease.

Each folder on the way is opened without following links and locked while something in it is deleted. The thing itself
is opened, compared with what the scan saw, locked, renamed to a name of ours, compared once more, and only then
deleted; if another thing took its place in between, that one gets its name back.
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
from types import TracebackType

from echotts.disk.scan import Found, OpenFiles
from echotts.disk.tree import Folder, KeptError, check_no_mount_below, mount_id, tree
from echotts.rundir.leases import FOLDER_NAME, OPEN_FOLDER, live_names, lock_alone

OPEN_ANY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
OPEN_TO_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
KEEP_SIZE, PUNCH_HOLE = 1, 2
LIBC = ctypes.CDLL(None, use_errno=True)
_COUNTER = itertools.count()


class OpenRoot:
    """A root, held open: what is found below `descriptor` is deleted below it, wherever its path leads by then."""

    def __init__(self, path: Path):
        """OSError where the path is not a folder, or leads through a symlink."""
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
        self._way: list[tuple[str, int]] = []  # the folders last gone into, locked

    def path_of(self, found: Found) -> Path:
        """For people; nothing is opened by it."""
        return self.path.joinpath(*found.folder, found.name)

    def lock(self, wait_s: float = 0.0) -> bool:
        """Keeps other passes, and leases of the whole root, out until `close`; False where they were there first."""
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
        """Deletes it and returns the bytes it had on the disk. Raises KeptError where it stays.

        `still` is asked once nobody else can take a lease: whether it may go even now.
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
        """Frees so much of a file that somebody may be writing, the oldest of it, but never its last `kept_bytes`.

        A hole takes the place of what is freed: the file keeps its length and its writer its place in it. Returns the
        bytes that are free again. Raises KeptError where nothing can be freed.
        """
        try:
            folder = self._enter(found.folder)
            descriptor = os.open(found.name, OPEN_TO_WRITE, dir_fd=folder)
        except OSError as error:
            raise KeptError(f"cannot be opened: {error.strerror}") from error
        try:
            about = os.fstat(descriptor)
            if (about.st_dev, about.st_ino) != (found.device, found.inode) or not stat.S_ISREG(about.st_mode):
                raise KeptError("another file has its name by now")
            if not lock_alone(descriptor) or found.name in live_names(folder):
                raise KeptError("leased")
            start = os.lseek(descriptor, 0, os.SEEK_DATA)  # behind the holes of earlier passes
            length = min(freed_bytes, about.st_size - kept_bytes - start)
            if length <= 0:
                raise KeptError("there is no more of it that may go")
            punch_hole(descriptor, start, length)
            return max(about.st_blocks - os.fstat(descriptor).st_blocks, 0) * 512
        except OSError as error:
            raise KeptError(f"cannot be shortened: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def leave(self) -> None:
        """Unlocks the folders that were gone into, but not the root."""
        while len(self._way) > 1:
            os.close(self._way.pop()[1])

    def close(self) -> None:
        for _, descriptor in self._way:
            os.close(descriptor)
        self._way.clear()
        self._closing.close()

    def __enter__(self) -> "OpenRoot":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self, folder: Folder) -> int:
        """The open, locked folder below this root; stays locked until another is gone into."""
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
    """Frees a part of a file, which then reads as zeros; see fallocate(2). OSError where the filesystem cannot."""
    if LIBC.fallocate(descriptor, KEEP_SIZE | PUNCH_HOLE, ctypes.c_int64(start), ctypes.c_int64(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _remove(folder: int, found: Found, descriptor: int, in_use: OpenFiles, still: Callable[[], bool]) -> int:
    about = os.fstat(descriptor)
    if (about.st_dev, about.st_ino) != (found.device, found.inode):
        raise KeptError("another file has its name by now")
    if not lock_alone(descriptor) or found.name in live_names(folder):
        raise KeptError("leased")
    if not still():
        raise KeptError("needed by now")
    check_no_mount_below(folder, found.name)
    is_folder = stat.S_ISDIR(about.st_mode)
    if is_folder:
        _check_inside(descriptor, found, in_use)
    elif not stat.S_ISREG(about.st_mode) or about.st_mtime > found.when:
        raise KeptError("written again")
    with _taken_away(folder, found) as trash:
        if found.name in live_names(folder):
            raise KeptError("leased")
        if is_folder:
            _check_inside(descriptor, found, in_use)
    if is_folder:
        shutil.rmtree(trash, dir_fd=folder)  # which goes by descriptors and follows no link either
        return found.size_bytes
    os.unlink(trash, dir_fd=folder)
    return about.st_blocks * 512


@contextmanager
def _taken_away(folder: int, found: Found) -> Iterator[str]:
    """Under a name of ours while it is looked at again, and after; with its own name back if that raises KeptError."""
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
            raise KeptError(f"another file took its name; what had it is {trash} now") from None
        os.rename(trash, found.name, src_dir_fd=folder, dst_dir_fd=folder)
        raise


def _check_inside(descriptor: int, found: Found, in_use: OpenFiles) -> None:
    """KeptError where anything in this folder is leased, open, newer than the scan, in another mount or too deep."""
    for here, name, about in tree(descriptor):
        if name == FOLDER_NAME and live_names(here):
            raise KeptError("something in it is leased")
        if about.st_mtime > found.when:
            raise KeptError("written again")
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
    """A folder by its absolute path, opened part by part so that no symlink is followed."""
    descriptor = os.open("/", OPEN_FOLDER)
    for name in path.parts[1:]:
        try:
            inner = os.open(name, OPEN_FOLDER, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor
