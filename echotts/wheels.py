"""Files that come inside installed packages, some cut into parts because packages have a size limit."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from echotts.files import atomic_write, sha256_file


def package_folder(name: str, hint: str) -> Path:
    """Folder of an installed package, which is not imported. Raises ModuleNotFoundError that ends with `hint`."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"the package {name.replace('_', '-')} is missing: {hint}")
    return Path(found.origin).parent


def cache_folder() -> Path:
    """Where files that were put together are kept, in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "echotts"


def join_parts(parts: Sequence[Path], path: Path, sha256: str) -> Path:
    """`path`, made of the parts one after another if it is not there yet. Raises ValueError where the hash differs."""
    if not path.is_file():
        with atomic_write(path) as temporary:
            with temporary.open("wb") as whole:
                for part in parts:
                    whole.write(part.read_bytes())
            if sha256_file(temporary) != sha256:
                raise ValueError(f"{path}: its parts, from {parts[0].parent}, do not have its SHA-256: reinstall them")
    return path
