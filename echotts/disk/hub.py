"""Unused revisions in a Hugging Face cache, by the Hub's own scan and deletion: its layout is its own affair.

Downloads that were cut off are partial files like others (`hub_partials`): the Hub's scan does not delete them.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from echotts.disk.remove import OpenRoot
from echotts.disk.scan import Found, OpenFiles, partial_files
from echotts.disk.settings import Root
from echotts.disk.tree import KeptError, check_no_mount_below, opened
from echotts.rundir.leases import lock_alone

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, HFCacheInfo

INNER = ("snapshots", "blobs", "refs")


@dataclass(frozen=True)
class Revision:
    """One revision of a cached repository that may go."""

    repo: str
    commit: str
    when: float  # last used, Unix seconds
    size_bytes: int  # that its deletion frees
    detached: bool  # no branch or tag points to it

    @property
    def why(self) -> str:
        """For people."""
        days = max(time.time() - self.when, 0.0) / 86400
        return f"{'detached ' if self.detached else ''}revision of {self.repo}, unused for {days:.1f} days"


def hub_partials(root: OpenRoot, min_age_s: float, in_use: OpenFiles) -> Iterator[Found]:
    """Downloads below `*/blobs/` that nobody goes on with."""
    for name in os.listdir(root.descriptor):
        with opened(root.descriptor, (name, "blobs")) as blobs:
            if blobs is not None:
                for found in partial_files(blobs, ("*.incomplete",), min_age_s, in_use, depth=1):
                    yield found._replace(folder=(name, "blobs"))


def unused_revisions(root: OpenRoot, rule: Root) -> list[Revision]:
    """Revisions that nobody has read since `min_age`, those without a name first, then the longest unused."""
    scan = _scan(root)
    before = time.time() - rule.min_age_s
    found = []
    for repo in scan.repos:
        if repo.repo_id in rule.keep or not _is_plain(root, repo):
            continue
        for revision in repo.revisions:
            when = _last_use(revision)
            strategy = scan.delete_revisions(revision.commit_hash)
            if when <= before and _all_inside(strategy, repo):
                size_bytes = int(strategy.expected_freed_size)
                found.append(Revision(repo.repo_id, revision.commit_hash, when, size_bytes, not revision.refs))
    return sorted(found, key=lambda revision: (not revision.detached, revision.when))


def remove_revision(root: OpenRoot, rule: Root, revision: Revision, in_use: OpenFiles) -> int:
    """Deletes it and returns the bytes that freed. Raises KeptError where it is leased, open, or used since."""
    scan = _scan(root)  # what was removed before changes what this one frees
    matching = [
        (repo, known)
        for repo in scan.repos
        for known in repo.revisions
        if repo.repo_id == revision.repo and known.commit_hash == revision.commit
    ]
    if len(matching) != 1:
        raise KeptError("is gone")
    repo, known = matching[0]
    strategy = scan.delete_revisions(revision.commit)
    if not _is_plain(root, repo) or not _all_inside(strategy, repo) or _last_use(known) > revision.when:
        raise KeptError("used again, or not what it was")
    check_no_mount_below(root.descriptor, repo.repo_path.name)
    with opened(root.descriptor, (repo.repo_path.name,)) as folder:
        if folder is None or not lock_alone(folder):
            raise KeptError("leased")
        for file in known.files:
            _check_blob(file.blob_path, in_use)
        strategy.execute()
    return int(strategy.expected_freed_size)


def _scan(root: OpenRoot) -> "HFCacheInfo":
    from huggingface_hub import scan_cache_dir  # a quarter of a second, and memory, that other roots do not need

    about, own = os.stat(root.path, follow_symlinks=False), os.fstat(root.descriptor)
    if not os.path.samestat(about, own):
        raise KeptError(f"{root.path} is another folder by now")
    return scan_cache_dir(root.path)


def _last_use(revision: "CachedRevisionInfo") -> float:
    """When it was downloaded, or one of its files read, as far as the filesystem notes that."""
    read = [max(file.blob_last_accessed, file.blob_last_modified) for file in revision.files]
    return max([revision.last_modified, *read])


def _is_plain(root: OpenRoot, repo: "CachedRepoInfo") -> bool:
    """Whether the repository's folders are folders right there: the Hub's deletion would follow a link's path."""
    with opened(root.descriptor, (repo.repo_path.name,)) as folder:
        if folder is None or repo.repo_path.parent != root.path:
            return False
        for name in INNER:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    return False
    return True


def _all_inside(strategy: object, repo: "CachedRepoInfo") -> bool:
    """Whether a deletion touches this repository alone: a commit may be in two, and is deleted by its hash."""
    places = [place for kind in ("repos", "snapshots", "refs", "blobs") for place in getattr(strategy, kind)]
    return bool(places) and all(place.is_relative_to(repo.repo_path) for place in places)


def _check_blob(blob: Path, in_use: OpenFiles) -> None:
    """KeptError where a file is leased or open."""
    try:
        descriptor = os.open(blob, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        about = os.fstat(descriptor)
        if (about.st_dev, about.st_ino) in in_use or not lock_alone(descriptor):
            raise KeptError("leased or open")
    finally:
        os.close(descriptor)
