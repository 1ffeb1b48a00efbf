"""The list of a dataset's shards: made once, in one process, and pinned if the source has revisions.

A Listing is JSON-serialisable. With one, no further requests are needed except those for the shards themselves.
"""

import dataclasses
import fnmatch
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echotts.data.format.info import INFO_NAME, SILENCE_NAME
from echotts.data.remote import hub
from echotts.data.remote.opening import filesystem
from echotts.data.remote.retry import Retries, retry
from echotts.data.remote.shard_file import ShardFile, difference, local_file
from echotts.data.remote.sources import Part, expand_braces, is_glob, is_shard, resolve, scheme_of

SUFFIX = ".tar"
SHARD_FIELDS = ("url", "bytes", "checksum", "written_ns")  # in this order, the last for local files only

SHOWN_CHANGES = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The shards of one part of a data argument. `revision` is the commit they are pinned to, if any.

    `beside` are the URLs of dataset.json and silence.npy in the shards' folders, or None if the source cannot be
    listed, so that only a request can tell.
    """

    spec: str
    weight: float | None
    files: tuple[ShardFile, ...]
    revision: str | None = None
    beside: tuple[str, ...] | None = None

    @property
    def remote(self) -> bool:
        return self.files[0].remote

    def to_json(self) -> dict[str, Any]:
        return {
            "spec": self.spec,
            "weight": self.weight,
            "revision": self.revision,
            "beside": self.beside,
            "shards": [_to_json(file) for file in self.files],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Listing":
        files = tuple(ShardFile(**dict(zip(SHARD_FIELDS, item, strict=False))) for item in fields["shards"])
        beside = None if fields["beside"] is None else tuple(fields["beside"])
        return cls(fields["spec"], fields["weight"], files, fields["revision"], beside)


def _to_json(file: ShardFile) -> list[Any]:
    return [getattr(file, name) for name in SHARD_FIELDS[: 4 if file.written_ns is not None else 3]]


def list_part(part: Part, retries: Retries) -> Listing:
    """Lists the shards that one part of a data argument currently names.

    FileNotFoundError if there is nothing or it is not accessible; ValueError for an invalid argument; Unavailable if a
    server does not answer before the deadline.
    """
    scheme = scheme_of(part.spec)
    if not scheme:
        return Listing(part.spec, part.weight, tuple(local_file(path) for path in resolve(part.spec)))
    if scheme == hub.SCHEME:
        return _list_hub(part, retries)
    if scheme in ("http", "https"):
        return Listing(part.spec, part.weight, _web_files(part.spec))
    return retry(lambda: _list_filesystem(part), part.spec, retries)


def check_pins(listings: Sequence[Listing], retries: Retries) -> list[str]:
    """Changes in the sources of stored lists, one line each; empty if they are the same.

    FileNotFoundError if a pinned commit itself no longer exists.
    """
    said = []
    for listing in listings:
        if not listing.remote:
            said += _check_local(listing)
        if scheme_of(listing.spec) != hub.SCHEME or listing.revision is None:
            continue
        place = hub.parse(listing.spec)
        pinned = hub.HubPath(place.repository, listing.revision, place.path).url
        retry(lambda url=pinned: hub.commit_of(url), listing.spec, retries)
        try:
            now = retry(lambda spec=listing.spec: hub.commit_of(spec), listing.spec, retries)
        except FileNotFoundError as error:
            said.append(f"{error}; the run continues at commit {listing.revision[:12]}")
            continue
        if now != listing.revision:
            said.append(
                f"{listing.spec} is now at commit {now[:12]}: the run stays at {listing.revision[:12]}, "
                "with the shards it started with; use another --run_dir for the new ones"
            )
    return said


def check_contents(listing: Listing, accept_changed: bool) -> Listing:
    """A stored list of local shards with their current sizes and times. ValueError if some were rewritten.

    Rewritten shards change the order of samples; with `accept_changed` that is logged instead.
    """
    if listing.remote:
        return listing
    changed = [line for file in listing.files if (line := difference(file)) is not None]
    if changed:
        what = f"{listing.spec}: {len(changed)} of {len(listing.files)} shards have changed since the run started: "
        what += "; ".join(changed[:SHOWN_CHANGES]) + ("; ..." if len(changed) > SHOWN_CHANGES else "")
        if not accept_changed:
            raise ValueError(
                f"{what}: samples would come in another order: restore the old files, use another --run_dir, or pass "
                "--run.accept_changed_data"
            )
        logger.warning("%s: accepted, the samples come in another order", what)
    files = (local_file(file.url, file.checksum) if Path(file.url).exists() else file for file in listing.files)
    return dataclasses.replace(listing, files=tuple(files))


def _check_local(listing: Listing) -> list[str]:
    try:
        now = {str(path) for path in resolve(listing.spec)}
    except FileNotFoundError:  # moved: the stream will report the missing shard
        return []
    before = {file.url for file in listing.files}
    if now == before:
        return []
    return [
        f"{listing.spec}: {len(now - before)} shards are new and {len(before - now)} gone since the run started: it "
        f"keeps using the {len(before)} it started with; use another --run_dir for the new ones"
    ]


def _list_hub(part: Part, retries: Retries) -> Listing:
    commit = retry(lambda: hub.commit_of(part.spec), part.spec, retries)
    extra = (INFO_NAME, SILENCE_NAME)
    files = retry(lambda: hub.list_files(part.spec, commit, (SUFFIX,), extra), part.spec, retries)
    shards = tuple(file for file in files if file.name not in extra)
    return Listing(part.spec, part.weight, shards, commit, tuple(file.url for file in files if file.name in extra))


def _web_files(spec: str) -> tuple[ShardFile, ...]:
    urls = list(dict.fromkeys(expand_braces(spec)))
    for url in urls:
        file = ShardFile(url=url)
        if is_glob(url.split("?")[0]):
            raise ValueError(f"{spec}: globs do not work over HTTP: give a range, as in s-{{000..099}}.tar")
        if not file.name.endswith(SUFFIX):
            raise ValueError(
                f"{spec}: {file.name} is not a {SUFFIX} file: give a range of shards, as in s-{{000..099}}.tar"
            )
    return tuple(ShardFile(url=url) for url in urls)


def _list_filesystem(part: Part) -> Listing:
    """Lists with fsspec. Each folder is listed once, however many shards it has."""
    scheme, found, lacking = scheme_of(part.spec), {}, []
    patterns = [
        path if path.endswith(SUFFIX) or is_glob(path) else f"{path.rstrip('/')}/*{SUFFIX}"
        for path in expand_braces(part.spec)
    ]
    folders: dict[str, dict[str, int | None]] = {}
    for pattern in patterns:
        fs, path = filesystem(pattern)
        folder = os.path.dirname(path)
        if is_glob(folder):
            sizes = {name: about.get("size") for name, about in fs.glob(path, detail=True).items()}
            sizes = {name: size for name, size in sizes.items() if is_shard(name)}
        else:
            if folder not in folders:
                try:
                    folders[folder] = {about["name"]: about.get("size") for about in fs.ls(folder, detail=True)}
                except FileNotFoundError:
                    folders[folder] = {}
            names = sorted(name for name in fnmatch.filter(folders[folder], path) if is_shard(name))
            sizes = {name: folders[folder][name] for name in names}
        found |= sizes
        lacking += [] if sizes else [pattern]
    if lacking:
        raise FileNotFoundError(
            f"{part.spec}: {len(lacking)} of {len(patterns)} paths do not exist, the first is {lacking[0]}"
        )
    files = tuple(ShardFile(url=f"{scheme}://{name.lstrip('/')}", bytes=size) for name, size in found.items())
    extra = (INFO_NAME, SILENCE_NAME)
    beside = [name for names in folders.values() for name in names if os.path.basename(name) in extra]
    seen = tuple(f"{scheme}://{name.lstrip('/')}" for name in sorted(beside)) if folders else None
    return Listing(part.spec, part.weight, files, None, seen)
