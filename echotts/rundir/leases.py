"""Leases: what is leased is not deleted, nor what lies below it.

    with lease(run_dir / "checkpoints" / "step_00001500"):
        ...  # read it

A lease is a shared flock on the file or folder itself, which no crash outlives, and a record beside it,
`.leases/<name>.<random>.json`: host, process id, when that process started, and a heartbeat (the record's time). The
lock speaks for processes of this machine, the record for those of others that see the same folder. Where no record
can be written (a read-only folder, a full disk, the Hub's cache, which is the Hub's to lay out) the lock stands alone.

Who deletes takes the lock alone (`lock_alone`), holds it until the thing is gone, and skips what another has locked.
A lease is given out only for what still has its name once it is locked: nobody is left holding a lease on a ghost.
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
STALE_S = 600.0  # a record of another machine without a heartbeat for so long is dead; clocks may differ by minutes
WAIT_S = 10.0  # for a cleaning pass that holds the lock, until it has looked or deleted
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # filesystems that know no flock
HUB_REPO = re.compile(r"(models|datasets|spaces|kernels)--.+")

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class _Record:
    """What a lease's file says."""

    name: str
    pid: int
    started: int | None
    host: str
    boot: str
    namespace: str

    def is_ours(self) -> bool:
        """Whether it is of a process that we could see."""
        return all(getattr(self, key) == value for key, value in this_machine().items())

    def runs(self) -> bool:
        """Whether its process runs: the same id, started at the same time."""
        start = process_start(self.pid)
        return start is not None and start == self.started


class LeaseError(OSError):
    """What was to be read is being deleted."""


@contextmanager
def lease(path: str | Path) -> Iterator[None]:
    """Within it, `path` (a file or folder) is not deleted by a watchdog. Shared: any number may lease the same.

    Raises FileNotFoundError where it is gone, LeaseError where it is just being deleted.
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
    """Within it this process touches the file every HEARTBEAT_S."""
    _HEARTBEAT.add(file)
    try:
        yield
    finally:
        _HEARTBEAT.remove(file)


def hub_repo(path: Path) -> Path | None:
    """The repository's folder in a Hub cache that `path` lies in; all its revisions are leased as one."""
    for folder in path.parents:
        if HUB_REPO.fullmatch(folder.name) and (folder / "snapshots").is_dir():
            return folder
    return None


def lock_alone(descriptor: int) -> bool:
    """Takes the exclusive lock; False where somebody has a lease, or where nobody can know."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def live_names(folder: int) -> set[str]:
    """The names in this folder (an open descriptor) that have a live record."""
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
    """Whether the file or folder of this name in an open folder has a lease. False where there is no such name."""
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
    """When a process of this machine started, in clock ticks since boot; None where there is none (any more)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


@functools.cache
def this_machine() -> dict[str, str]:
    """What tells whether a process id in a record is one of ours: host, boot and process namespace."""
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
            raise LeaseError(f"{path}: is being deleted to make room on the disk; read a newer one")
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
    """The record of a lease, kept fresh by a thread of this process; nothing where it cannot be written."""
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
    for _ in range(3):  # another's last lease may take the folder away between these lines
        try:
            file.parent.mkdir(exist_ok=True)
            _clear_dead(file.parent)
            unfinished = file.with_suffix(".tmp")  # who is killed here leaves no record that nobody can read
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
    """Records of processes of this machine that are no more, and what was to become one long ago."""
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
    """The name that a record holds, if it is live. One that cannot be read counts while it is fresh."""
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
    """Touches the records of this process's leases; its thread lives while there are any."""

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
