"""A shard as the list of a run knows it, wherever it is."""

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
    """One shard file. Size and checksum where they are known: `sha256:<hex>`, or `git:<hex>` as git names a blob."""

    url: str
    """A path of this machine, hf://datasets/ORG/NAME@COMMIT/path, https://host/path, gs://bucket/path."""
    bytes: int | None = None
    checksum: str | None = None
    written_ns: int | None = None
    """When it was last written, of a local file, as the file system says it."""

    @property
    def remote(self) -> bool:
        return bool(scheme_of(self.url))

    @property
    def name(self) -> str:
        """The file's name without its folder: what messages and stream states call it."""
        if not self.remote:
            return os.path.basename(self.url)
        return unquote(os.path.basename(urlsplit(self.url).path)) or self.url

    @property
    def folder(self) -> str:
        """The address of the folder it is in."""
        return self.url.split("?")[0].rpartition("/")[0]


def local_file(path: str | Path, checksum: str | None = None) -> ShardFile:
    """A file of this machine as it is now. FileNotFoundError where it is not there."""
    status = os.stat(path)
    return ShardFile(url=str(path), bytes=status.st_size, checksum=checksum, written_ns=status.st_mtime_ns)


def difference(before: ShardFile) -> str | None:
    """What has happened to a local shard since it was listed; None where it holds the same, as far as can be told."""
    if before.bytes is None:  # listed by a program that did not look
        return None
    try:
        now = local_file(before.url)
    except FileNotFoundError:  # the stream will say so
        return None
    if now.bytes != before.bytes:
        return f"{before.url} has {now.bytes} bytes, it had {before.bytes}"
    if now.written_ns == before.written_ns:
        return None
    if before.checksum is None:
        return f"{before.url} was written again"
    same = before.checksum == f"sha256:{sha256_file(Path(before.url))}"
    return None if same else f"{before.url} holds something else"


def hasher(checksum: str | None, size_bytes: int | None) -> Any:
    """What a file's bytes go through to be compared with its checksum."""
    if checksum is not None and checksum.startswith("git:"):
        return hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)
    return hashlib.sha256()
