"""The three operations of the dashboard on run directories, local or in a bucket: list, stat, read.

Paths are relative and come from listings, never from a request. Nothing outside the folder is read: since a run may be
untrusted, a link that leads out of it, a pipe or a device counts as missing.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from echotts import gcs

MAX_DEPTH = 16  # folders below a checkpoint; deeper ones are ignored


@dataclass(frozen=True)
class Entry:
    """A file or folder in a listing. `identity` changes when a local file is replaced."""

    name: str
    is_folder: bool
    size_bytes: int
    modified: float | None  # Unix s
    identity: object = None


@runtime_checkable
class Folder(Protocol):
    """One run directory."""

    @property
    def spec(self) -> str:
        """Its path or URL, as given on the command line."""
        ...

    @property
    def refresh_s(self) -> float:
        """Seconds for which a result may be reused."""
        ...

    def entries(self, path: str = "") -> list[Entry]:
        """The entries of a folder, by name; empty if it is missing."""
        ...

    def stat(self, path: str) -> Entry | None:
        """A regular file, or None."""
        ...

    def read(self, path: str, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`; empty if the file is missing or shorter."""
        ...

    def local_path(self, path: str) -> str | None:
        """The path of a regular file on this machine; None if it is not local."""
        ...


def open_folder(spec: str) -> Folder:
    """A local directory, or an fsspec URL (gs://bucket/run). OSError if a local directory is missing."""
    if "://" in spec:
        return RemoteFolder(spec)
    path = Path(spec).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(
            f"{spec}: no such directory; give a run directory, or the parent of several with --runs_root"
        )
    return LocalFolder(path)


class LocalFolder:
    """A directory on this machine."""

    refresh_s = 1.0

    def __init__(self, root: Path):
        self._root = root.resolve()
        self.spec = str(self._root)

    def entries(self, path: str = "") -> list[Entry]:
        try:
            with os.scandir(self._inside(path)) as found:
                return sorted((entry for entry in map(_local_entry, found) if entry), key=lambda entry: entry.name)
        except OSError:
            return []

    def stat(self, path: str) -> Entry | None:
        try:
            found = os.stat(self._inside(path))
        except OSError:
            return None
        return _entry(os.path.basename(path), found) if stat.S_ISREG(found.st_mode) else None

    def read(self, path: str, start: int, length: int) -> bytes:
        try:
            # O_NONBLOCK: a pipe may have replaced the file since it was listed
            descriptor = os.open(self._inside(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError:
            return b""
        try:
            return os.pread(descriptor, length, start) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        except OSError:
            return b""
        finally:
            os.close(descriptor)

    def local_path(self, path: str) -> str | None:
        try:
            return self._inside(path) if self.stat(path) else None
        except OSError:
            return None

    def _inside(self, path: str) -> str:
        real = os.path.realpath(self._root / path)
        if real != str(self._root) and not real.startswith(f"{self._root}{os.sep}".replace("//", "/")):
            raise PermissionError(f"{self._root / path} leads out of the run directory")
        return real


class RemoteFolder:
    """A directory of a bucket, through fsspec (an optional dependency)."""

    refresh_s = 10.0  # requests are billed

    def __init__(self, spec: str):
        self.spec = spec
        if gcs.is_bucket(spec):
            self._files, root = gcs.open_bucket(spec)
        else:
            try:
                import fsspec

                self._files, root = fsspec.core.url_to_fs(spec)
            except (ImportError, ValueError) as error:
                raise ValueError(f"{spec}: {error}; supported: local directories and gs://bucket/run") from error
        self._root = root.rstrip("/")

    def entries(self, path: str = "") -> list[Entry]:
        self._files.invalidate_cache()
        try:
            found = self._files.ls(f"{self._root}/{path}".rstrip("/"), detail=True)
        except gcs.failures():
            return []
        entries = (_remote_entry(info) for info in found)
        return sorted((entry for entry in entries if entry.name), key=lambda entry: entry.name)

    def stat(self, path: str) -> Entry | None:
        self._files.invalidate_cache()
        try:
            found = _remote_entry(self._files.info(f"{self._root}/{path}"))
        except gcs.failures():
            return None
        return None if found.is_folder else found

    def read(self, path: str, start: int, length: int) -> bytes:
        try:
            return self._files.cat_file(f"{self._root}/{path}", start=start, end=start + length)
        except (*gcs.failures(), ValueError):  # deleted or truncated
            return b""

    def local_path(self, path: str) -> str | None:
        return None


def walk(folder: Folder, path: str, depth: int = MAX_DEPTH) -> Iterator[tuple[str, Entry]]:
    """(relative path, entry) of every file below `path`, at most `depth` folders down."""
    for entry in folder.entries(path):
        below = f"{path}/{entry.name}" if path else entry.name
        if not entry.is_folder:
            yield below, entry
        elif depth > 0:
            yield from walk(folder, below, depth - 1)


def shown(name: str) -> str:
    """A file name for display and JSON: invalid UTF-8 becomes replacement characters."""
    return os.fsencode(name).decode("utf-8", "replace")


def hashed(path: str) -> str:
    """A stable id of a path of arbitrary bytes."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()


def _local_entry(found: os.DirEntry[str]) -> Entry | None:
    try:
        entry = found.stat(follow_symlinks=False)
    except OSError:  # deleted since it was listed
        return None
    return _entry(found.name, entry) if stat.S_ISREG(entry.st_mode) or stat.S_ISDIR(entry.st_mode) else None


def _entry(name: str, found: os.stat_result) -> Entry:
    identity = (found.st_dev, found.st_ino)
    return Entry(name, stat.S_ISDIR(found.st_mode), found.st_size, found.st_mtime, identity)


def _remote_entry(info: dict[str, Any]) -> Entry:
    modified = info.get("mtime") or info.get("updated") or info.get("created")
    if hasattr(modified, "timestamp"):
        modified = modified.timestamp()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    name = info["name"].rstrip("/").rpartition("/")[2]
    return Entry(
        name,
        info.get("type") == "directory",
        int(info.get("size") or 0),
        float(modified) if isinstance(modified, int | float) else None,
    )
