"""Leases: something leased, and everything below it, is not deleted.

    with lease(run_dir / "checkpoints" / "step_00001500"):
        ...  # read it

A lease is a shared flock on the file or folder itself, which is released even by a crash, and a record beside it,
`.leases/<name>.<random>.json`, with host, process id, the process's start time, and a heartbeat (the modification
time). The lock is visible to processes on this machine, the record to other machines that share the folder. If no
record can be written (read-only folder, full disk, or the Hub's cache, whose layout is not ours) there is only the
lock.

Deletion takes the exclusive lock (`lock_alone`), holds it until the thing is gone, and skips what others have locked. A
lease is granted only if the path still refers to the locked file, so no one holds a lease on something deleted.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from echotts.strict_json import load_json

FOLDER_NAME = ".leases"
RECORD_BYTES = 4096
HEARTBEAT_S = 20.0
STALE_S = 600.0  # a record of another machine is dead without a heartbeat for this long; clocks may differ by minutes
WAIT_S = 10.0  # maximum wait for a cleaning pass that holds the lock
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # file systems without flock
HUB_REPO = re.compile(r"(models|datasets|spaces|kernels)--.+")

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class _Record:
    """The content of a lease's record."""

    name: str
    pid: int
    started: int | None
    host: str
    boot: str
    namespace: str

    def is_ours(self) -> bool:
        """Whether it belongs to a process visible from here."""
        return all(getattr(self, key) == value for key, value in this_machine().items())

    def runs(self) -> bool:
        """Whether its process is running: same id, same start time."""
        start = process_start(self.pid)
        return start is not None and start == self.started


class LeaseError(OSError):
    """What should be read is being deleted."""


@contextmanager
def lease(path: str | Path) -> Iterator[None]:
    """Protects `path` (a file or folder) from deletion by a watchdog. Shared: there may be any number of leases.

    Raises FileNotFoundError if it does not exist, LeaseError if it is being deleted.
    """
    absolute = Path(path).absolute()
    repo = hub_repo(absolute)
    with contextlib.ExitStack() as stack:
        for locked in filter(None, (repo, absolute)):
            stack.callback(os.close, _lock_shared(locked))
        if repo is None:
            stack.enter_context(_record(absolute.resolve()))
        yield


@contextmanager
def beating(file: Path) -> Iterator[None]:
    """Touches the file every HEARTBEAT_S from this process."""
    _HEARTBEAT.add(file)
    try:
        yield
    finally:
        _HEARTBEAT.remove(file)


def hub_repo(path: Path) -> Path | None:
    """The folder of the repository in a Hub cache that contains `path`; its revisions are leased together."""
    for folder in path.parents:
        if HUB_REPO.fullmatch(folder.name) and (folder / "snapshots").is_dir():
            return folder
    return None


def lock_alone(descriptor: int) -> bool:
    """Takes the exclusive lock; False if there is a lease, or if locks are unsupported."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def live_names(folder: int) -> set[str]:
    """The names in this folder (an open descriptor) with a live record."""
    try:
        records = os.open(FOLDER_NAME, OPEN_FOLDER, dir_fd=folder)
    except OSError:
        return set()
    try:
        return {
            name
            for file in os.listdir(records)
            if file.endswith(".json") and (name := _leased_by(records, file)) is not None
        }
    finally:
        os.close(records)


def is_leased(folder: int, name: str) -> bool:
    """Whether the file or folder of this name in an open folder is leased. False if it does not exist."""
    if name in live_names(folder):
        return True
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        return not lock_alone(descriptor)
    finally:
        os.close(descriptor)


def process_start(pid: int) -> int | None:
    """Start time of a process on this machine in clock ticks since boot; None if it does not exist (any more)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


@functools.cache
def this_machine() -> dict[str, str]:
    """Identifies the process id namespace of a record: host, boot and namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return {"host": socket.gethostname(), "boot": boot, "namespace": os.readlink("/proc/self/ns/pid")}


def _lock_shared(path: Path) -> int:
    deadline = time.monotonic() + WAIT_S
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if _try_shared(descriptor) and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise LeaseError(f"{path}: is being deleted to free disk space; read a newer one")
        time.sleep(0.01)


def _try_shared(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


@contextmanager
def _record(path: Path) -> Iterator[None]:
    """Writes the record of a lease and keeps it fresh; does nothing if it cannot be written."""
    file = path.parent / FOLDER_NAME / f"{path.name[:200]}.{secrets.token_hex(6)}.json"
    if not _write_record(file, path.name):
        yield
        return
    try:
        with beating(file):
            yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
            file.parent.rmdir()  # only where it is empty


def _write_record(file: Path, name: str) -> bool:
    record = _Record(name, os.getpid(), process_start(os.getpid()), **this_machine())
    for _ in range(3):  # the end of another lease may remove the folder between these lines
        try:
            file.parent.mkdir(exist_ok=True)
            _clear_dead(file.parent)
            unfinished = file.with_suffix(".tmp")  # a process killed here leaves no unreadable record
            unfinished.write_text(json.dumps(asdict(record)) + "\n", encoding="utf-8")
            unfinished.rename(file)
        except FileNotFoundError:
            continue
        except OSError:
            break
        return True
    with contextlib.suppress(OSError):
        file.with_suffix(".tmp").unlink(missing_ok=True)
    return False


def _clear_dead(folder: Path) -> None:
    """Removes records of dead processes of this machine, and old temporary files."""
    for file in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > STALE_S:
                file.unlink()
    for file in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            record = load_json(file.read_bytes()[: RECORD_BYTES + 1], file, _Record, max_bytes=RECORD_BYTES)
            if record.is_ours() and not record.runs():
                file.unlink(missing_ok=True)


def _leased_by(records: int, file: str) -> str | None:
    """The name in a record, if the record is live. An unreadable one counts while it is fresh."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=records)
    except OSError:
        return None
    with open(descriptor, "rb") as opened:
        fresh = time.time() - os.fstat(descriptor).st_mtime < STALE_S
        try:
            record = load_json(opened.read(RECORD_BYTES + 1), file, _Record, max_bytes=RECORD_BYTES)
        except (OSError, ValueError):
            return file.rsplit(".", 2)[0] if fresh else None
    return record.name if (record.runs() if record.is_ours() else fresh) else None


class _Heartbeat:
    """Touches the records of this process's leases; its thread runs while there are any."""

    def __init__(self) -> None:
        self._files: set[Path] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, file: Path) -> None:
        with self._lock:
            self._files.add(file)
            if self._thread is None:
                self._wake.clear()
                self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)
                self._thread.start()

    def remove(self, file: Path) -> None:
        with self._lock:
            self._files.discard(file)
            if not self._files:
                self._wake.set()

    def _beat(self) -> None:
        while True:
            self._wake.wait(HEARTBEAT_S)
            with self._lock:
                if not self._files:
                    self._thread = None
                    return
                self._wake.clear()
                files = list(self._files)
            for file in files:
                with contextlib.suppress(OSError):
                    os.utime(file)


_HEARTBEAT = _Heartbeat()
