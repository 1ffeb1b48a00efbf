"""Files that appear under their name only when they are whole, and text files read as UTF-8 whatever the locale."""

import codecs
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, flushed and named `path` on success, removed on failure.

    Makes the folder. Raises OSError that names `path` and the reason when nothing can be written there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder: name a file")
        temporary.touch()
        mode = temporary.stat().st_mode
    except OSError as error:
        raise type(error)(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own there, which nobody else may read
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """A UTF-8 text file without its byte order mark. ValueError names file, line and byte of what is not UTF-8."""
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise ValueError(
            f"{path}, line {line}, byte {column} (0x{data[error.start]:02x}): not UTF-8: save the file as UTF-8"
        ) from None


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until the file or folder is on the disk: a name must not outlive a power cut that its bytes did not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
