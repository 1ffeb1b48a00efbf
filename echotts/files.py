"""Atomic writes, and early checks that output files can be written.

Text files are read as UTF-8 regardless of the locale.
"""

import codecs
import functools
import hashlib
import itertools
import json
import os
import re
import stat
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

ASSETS = Path(__file__).parent / "assets"  # corpus, codecs and models that are part of the package
MODELS = {name: ASSETS / "model" / f"{name}.safetensors" for name in ("demo", "english")}  # spoken with by name

SEARCHED = 1000  # entries of a folder checked for files of killed writers
LEFT_S = 3600.0  # age at which a partial file of another machine counts as abandoned


class Closing(ABC):
    """What `with` closes at its end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Releases what is held; harmless when repeated."""


def check_outputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path] = ()) -> None:
    """Checks before long work that each output can be written and is neither another output nor one of the `inputs`.

    Missing folders are created. Raises OSError if an output is a folder, device, pipe or socket, or cannot be created,
    ValueError if a path is given twice.
    """
    taken = {_identity(Path(path)): f"{path}, which is read" for path in inputs}
    for path in map(Path, outputs):
        check_writable(path)
        identity = _identity(path)
        if identity in taken:
            raise ValueError(f"{path}: is the same file as {taken[identity]}: choose another name")
        taken[identity] = f"{path}, which is written too"


def check_writable(path: str | Path) -> None:
    """Checks that `atomic_write` can write `path`, by creating and removing a file; creates its folder if missing.

    Only an attempt can tell about read-only mounts and quotas. Raises OSError with a one-line message.
    """
    _temporary(Path(path)).unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically; errors as in `write_whole`."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    write_whole(path, text.encode(errors="backslashreplace"))  # escapes what is no Unicode, such as of file names


def write_whole(path: Path, data: bytes | str) -> None:
    """Writes a file atomically, text as UTF-8. OSError names it and the reason."""
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    except OSError as error:
        if error.strerror is None:  # the message already has both
            raise
        raise OSError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, which is flushed and renamed to `path` on success, else removed.

    Creates the folder, and removes what killed writers of the same file left there. Raises OSError naming `path` and
    the reason if it cannot be written, or is a folder, device, pipe or socket.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors replaces the file with one that only its owner may read
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """A UTF-8 text file without its byte order mark. ValueError names file, line and byte of invalid UTF-8."""
    return _decoded(path, path.read_bytes())


def _decoded(path: Path, data: bytes) -> str:
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise ValueError(
            f"{path}, line {line}, byte {column} (0x{data[error.start]:02x}): not UTF-8: save the file as UTF-8"
        ) from None


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, which end at line feeds only; none if the file does not exist.

    Text after the last line feed is dropped: its writer was interrupted. Raises ValueError as `read_text`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return _decoded(path, data[: data.rfind(b"\n") + 1]).split("\n")[:-1]


def cache_root() -> Path:
    """~/.cache/echotts, or below XDG_CACHE_HOME. Without a home folder, a per-user folder in the temporary one."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) / "echotts"
    try:
        return Path.home() / ".cache" / "echotts"
    except RuntimeError:  # neither HOME nor an entry in passwd
        return Path(tempfile.gettempdir()) / f"echotts-{os.getuid()}"


def plain(name: str) -> str:
    """A file name as one line of valid UTF-8: invalid bytes and line feeds are escaped."""
    return name.encode(errors="backslashreplace").decode().replace("\n", "\\n")


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    """An empty file beside `path` that can replace it."""
    temporary = path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.partial") if path.name else path
    try:
        if os.path.lexists(path) and not path.is_file() and (kind := _kind(path)):
            raise OSError(None, f"it is {kind}, not a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path)
        temporary.touch()
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        kind = type(error) if isinstance(error, OSError) else OSError
        raise kind(f"{path}: cannot be written: {reason}") from error
    return temporary


def _remove_left(path: Path) -> None:
    """Removes partial files of writers of this file that no longer run."""
    left = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{8}})\.(\d+)\.partial")
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in itertools.islice(entries, SEARCHED):
            if found := left.fullmatch(entry.name):
                machine, pid = found.groups()
                with suppress(FileNotFoundError):
                    old = time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFT_S
                    if (machine == _machine() and not os.path.exists(f"/proc/{pid}")) or (
                        machine != _machine() and old
                    ):
                        os.unlink(entry.path)


@functools.cache
def _machine() -> str:
    """Hash of this boot and this container, in which a process id is unique."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    return hashlib.sha256(boot + os.readlink("/proc/self/ns/pid").encode()).hexdigest()[:8]


def _kind(path: Path) -> str | None:
    """What a path is if it is not a regular file; None for a dangling symlink."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _identity(path: Path) -> tuple[int, int] | str:
    """Equal for two names of the same file."""
    try:
        status = path.stat()
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _flush(path: Path) -> None:
    """Flushes a file or folder to disk: after a power cut a name must not exist without its contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
