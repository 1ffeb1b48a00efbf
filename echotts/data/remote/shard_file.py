"""A shard file in a listing, local or remote."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from echotts.data.remote.sources import scheme_of
from echotts.files import sha256_file


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One shard file. Size and checksum if known: `sha256:<hex>`, or `git:<hex>` for git's blob hash."""

    url: str
    """A local path, hf://datasets/ORG/NAME@COMMIT/path, https://host/path or gs://bucket/path."""
    bytes: int | None = None
    checksum: str | None = None
    written_ns: int | None = None
    """Modification time of a local file."""

    @property
    def remote(self) -> bool:
        return bool(scheme_of(self.url))

    @property
    def name(self) -> str:
        """The file's name without its folder, used in messages and stream states."""
        if not self.remote:
            return os.path.basename(self.url)
        return unquote(os.path.basename(urlsplit(self.url).path)) or self.url

    @property
    def folder(self) -> str:
        """The URL of the folder it is in."""
        return self.url.split("?")[0].rpartition("/")[0]


def local_file(path: str | Path, checksum: str | None = None) -> ShardFile:
    """A local file as it is now. FileNotFoundError if it does not exist."""
    status = os.stat(path)
    return ShardFile(url=str(path), bytes=status.st_size, checksum=checksum, written_ns=status.st_mtime_ns)


def difference(before: ShardFile) -> str | None:
    """How a local shard has changed since it was listed; None if it is the same, as far as can be told."""
    if before.bytes is None:  # listed by an older version without sizes
        return None
    try:
        now = local_file(before.url)
    except FileNotFoundError:  # the stream will report it
        return None
    if now.bytes != before.bytes:
        return f"{before.url} has {now.bytes} bytes instead of {before.bytes}"
    if now.written_ns == before.written_ns:
        return None
    if before.checksum is None:
        return f"{before.url} was rewritten"
    same = before.checksum == f"sha256:{sha256_file(Path(before.url))}"
    return None if same else f"{before.url} has other contents"


def hasher(checksum: str | None, size_bytes: int | None) -> Any:
    """The hash object for comparing a file with its checksum."""
    if checksum is not None and checksum.startswith("git:"):
        return hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)
    return hashlib.sha256()
