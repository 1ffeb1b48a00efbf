"""The disk cache of downloaded shards: one folder (slot) per process, with a budget in bytes.

    <cache>/slot-0/owner                       locked while a process owns the slot
    <cache>/slot-0/<id>.tar                    a complete shard, leased (echotts.rundir.leases) while it is needed
    <cache>/slot-0/<id>.tar.<pid>.partial      being downloaded by the process with this id

What a killed process leaves behind is used by the next one that gets its slot. Not thread-safe: users of a Cache hold
its `lock` around every call.
"""

import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from echotts.data.remote.shard_file import ShardFile
from echotts.files import cache_root
from echotts.rundir.leases import lease

logger = logging.getLogger(__name__)

MAX_SLOTS = 256
ID_LETTERS = 32


@dataclass
class _Entry:
    """A shard in the cache: its bytes on disk (or expected bytes, while it is downloaded) and its readers."""

    bytes: int
    fetching: bool = False
    readers: int = 0
    lease: ExitStack = field(default_factory=ExitStack)


class Cache:
    """The slot of this process. Sizes are in bytes; `used` includes downloads in progress."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        """Takes the first free slot. OSError if nothing can be written under `root`."""
        self.budget_bytes = budget_bytes
        self.users = 0
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)  # notified when a shard is downloaded, released or requested
        self._entries: dict[str, _Entry] = {}
        self._token = secrets.token_hex(8)
        self.folder, self._owner = _take_slot(root)
        self._adopt()
        free = shutil.disk_usage(self.folder).free + self.used
        if free < budget_bytes:
            logger.warning(
                "%s: only %.1f GB are free, but the cache may use %.1f GB: lower --data.cache_gb or free some space",
                *(self.folder, free / 1e9, budget_bytes / 1e9),
            )

    def join(self) -> None:
        """Registers one more user of the cache; the last one to leave closes it."""
        self.users += 1

    def leave(self) -> None:
        self.users -= 1
        if self.users == 0:
            self._close()

    @property
    def used(self) -> int:
        return sum(entry.bytes for entry in self._entries.values())

    def id_of(self, shard: ShardFile) -> str:
        """A cache key: the same in every run for a file with a known checksum, else specific to this process."""
        content = shard.checksum or f"{self._token} {shard.url}"
        return hashlib.sha256(content.encode()).hexdigest()[:ID_LETTERS]

    def has(self, key: str) -> bool:
        """Whether the complete shard is in the cache."""
        entry = self._entries.get(key)
        return entry is not None and not entry.fetching

    def coming(self, key: str) -> bool:
        """Whether the shard is being downloaded."""
        entry = self._entries.get(key)
        return entry is not None and entry.fetching

    def fits(self, size_bytes: int) -> bool:
        return self.used + size_bytes <= self.budget_bytes

    def reserve(self, key: str, size_bytes: int) -> Path:
        """Reserves space for a shard that is about to be downloaded; returns the path of its partial file."""
        self._entries[key] = _Entry(size_bytes, fetching=True)
        partial = self.folder / f"{key}.tar.{os.getpid()}.partial"
        for left in self.folder.glob(f"{key}.tar.*.partial"):
            left.rename(partial)
        return partial

    def resize(self, key: str, size_bytes: int) -> None:
        self._entries[key].bytes = size_bytes

    def commit(self, key: str, partial: Path, size_bytes: int) -> None:
        """Renames the downloaded file to its final name and leases it."""
        entry = self._entries[key]
        path = self._path(key)
        os.replace(partial, path)
        entry.bytes, entry.fetching = size_bytes, False
        entry.lease.enter_context(lease(path))

    def acquire(self, key: str) -> Path:
        """The path of a complete shard, which is not discarded until `release`."""
        self._entries[key].readers += 1
        return self._path(key)

    def release(self, key: str) -> None:
        if key in self._entries:  # missing if the cache was closed meanwhile
            self._entries[key].readers -= 1

    def idle(self) -> list[str]:
        """The shards without readers, oldest first."""
        return [key for key, entry in self._entries.items() if not entry.readers and not entry.fetching]

    def discard(self, key: str, keep_partial: bool = False) -> None:
        """Deletes a shard and forgets it. Logs an OSError and ignores it: another process may have deleted the file."""
        entry = self._entries.pop(key)
        entry.lease.close()
        victims = [self._path(key)] if not entry.fetching else list(self.folder.glob(f"{key}.tar.*.partial"))
        for path in () if keep_partial else victims:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s: cannot be deleted: %s", path, error.strerror)

    def _close(self) -> None:
        """Gives up the slot and all leases; files stay for the next run."""
        for entry in self._entries.values():
            entry.lease.close()
        self._entries.clear()
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.tar"

    def _adopt(self) -> None:
        """Takes over what the slot's last owner left: complete shards, and partial files that may be resumed."""
        for path in sorted(self.folder.glob("*.tar"), key=lambda path: path.stat().st_mtime):
            entry = _Entry(path.stat().st_size)
            entry.lease.enter_context(lease(path))
            self._entries[path.stem] = entry
        for path in self.folder.glob("*.partial"):
            key = path.name.split(".")[0]
            if key not in self._entries and self.used + path.stat().st_size < self.budget_bytes:
                continue
            path.unlink(missing_ok=True)


def default_root() -> Path:
    """~/.cache/echotts/shards, or below XDG_CACHE_HOME."""
    return cache_root() / "shards"


def _take_slot(root: Path) -> tuple[Path, int]:
    for number in range(MAX_SLOTS):
        folder = root / f"slot-{number}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            owner = os.open(folder / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise type(error)(
                f"{folder}: cannot create the shard cache ({error.strerror}): give another --data.cache_dir"
            ) from None
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(owner)
            continue
        return folder, owner
    raise OSError(f"{root}: all {MAX_SLOTS} slots are in use: give another --data.cache_dir")
