"""A shard as the list of a run knows it, wherever it is."""

import hashlib
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from echotts.data.remote.sources import scheme_of


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One shard file. Size and checksum where they are known: `sha256:<hex>`, or `git:<hex>` as git names a blob."""

    url: str
    """A path of this machine, hf://datasets/ORG/NAME@COMMIT/path, https://host/path, gs://bucket/path."""
    bytes: int | None = None
    checksum: str | None = None

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


def hasher(checksum: str | None, size_bytes: int | None) -> Any:
    """What a file's bytes go through to be compared with its checksum."""
    if checksum is not None and checksum.startswith("git:"):
        return hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)
    return hashlib.sha256()
