"""Files inside installed packages, some split into parts because of the size limit of packages."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from echotts.files import atomic_write, sha256_file


def package_folder(name: str, hint: str) -> Path:
    """Folder of an installed package, without importing it. Raises ModuleNotFoundError that ends with `hint`."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"the package {name.replace('_', '-')} is missing: {hint}")
    return Path(found.origin).parent


def cache_folder() -> Path:
    """The folder for joined files, in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "echotts"


def join_parts(parts: Sequence[Path], path: Path, sha256: str) -> Path:
    """Creates `path` from the parts unless it exists, and returns it. Raises ValueError if the hash differs."""
    if not path.is_file():
        with atomic_write(path) as temporary:
            with temporary.open("wb") as whole:
                for part in parts:
                    whole.write(part.read_bytes())
            if sha256_file(temporary) != sha256:
                raise ValueError(
                    f"{path}: the parts in {parts[0].parent} do not have the expected SHA-256: reinstall them"
                )
    return path
