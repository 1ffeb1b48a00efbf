"""Files that appear under their name only when they are whole."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"  # what the package brings: corpus, codec and model of the demo


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


def cache_root() -> Path:
    """~/.cache/echotts, or below XDG_CACHE_HOME. Without a home it is a folder of this user in the temporary one."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) / "echotts"
    try:
        return Path.home() / ".cache" / "echotts"
    except RuntimeError:  # neither HOME nor an entry in passwd
        return Path(tempfile.gettempdir()) / f"echotts-{os.getuid()}"


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
