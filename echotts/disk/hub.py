"""Unused revisions in a Hugging Face cache, found and deleted with huggingface_hub, which owns the layout.

Interrupted downloads are handled like other partial files (`hub_partials`), because the Hub's scan does not delete
them.
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
    """A revision of a cached repository that may be deleted."""

    repo: str
    commit: str
    when: float  # last used, Unix seconds
    size_bytes: int  # freed by its deletion
    detached: bool  # no branch or tag refers to it

    @property
    def why(self) -> str:
        """A description for the log."""
        days = max(time.time() - self.when, 0.0) / 86400
        return f"{'detached ' if self.detached else ''}revision of {self.repo}, unused for {days:.1f} days"


def hub_partials(root: OpenRoot, min_age_s: float, in_use: OpenFiles) -> Iterator[Found]:
    """Abandoned downloads below `*/blobs/`."""
    for name in os.listdir(root.descriptor):
        with opened(root.descriptor, (name, "blobs")) as blobs:
            if blobs is not None:
                for found in partial_files(blobs, ("*.incomplete",), min_age_s, in_use, depth=1):
                    yield found._replace(folder=(name, "blobs"))


def unused_revisions(root: OpenRoot, rule: Root) -> list[Revision]:
    """Revisions not read for `min_age`: first those without a branch or tag, then the least recently used."""
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
    """Deletes a revision and returns the bytes freed. Raises KeptError if it is leased, open, or used meanwhile."""
    scan = _scan(root)  # earlier deletions change what this one frees
    matching = [
        (repo, known)
        for repo in scan.repos
        for known in repo.revisions
        if repo.repo_id == revision.repo and known.commit_hash == revision.commit
    ]
    if len(matching) != 1:
        raise KeptError("no longer exists")
    repo, known = matching[0]
    strategy = scan.delete_revisions(revision.commit)
    if not _is_plain(root, repo) or not _all_inside(strategy, repo) or _last_use(known) > revision.when:
        raise KeptError("was used or changed meanwhile")
    check_no_mount_below(root.descriptor, repo.repo_path.name)
    with opened(root.descriptor, (repo.repo_path.name,)) as folder:
        if folder is None or not lock_alone(folder):
            raise KeptError("is leased")
        for file in known.files:
            _check_blob(file.blob_path, in_use)
        strategy.execute()
    return int(strategy.expected_freed_size)


def _scan(root: OpenRoot) -> "HFCacheInfo":
    from huggingface_hub import scan_cache_dir  # takes 0.25 s and memory that other roots do not need

    about, own = os.stat(root.path, follow_symlinks=False), os.fstat(root.descriptor)
    if not os.path.samestat(about, own):
        raise KeptError(f"{root.path} was replaced by another folder")
    return scan_cache_dir(root.path)


def _last_use(revision: "CachedRevisionInfo") -> float:
    """When it was downloaded or one of its files last read, as far as the file system records that."""
    read = [max(file.blob_last_accessed, file.blob_last_modified) for file in revision.files]
    return max([revision.last_modified, *read])


def _is_plain(root: OpenRoot, repo: "CachedRepoInfo") -> bool:
    """Whether the repository's folders are real folders: the Hub's deletion would follow symlinks."""
    with opened(root.descriptor, (repo.repo_path.name,)) as folder:
        if folder is None or repo.repo_path.parent != root.path:
            return False
        for name in INNER:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    return False
    return True


def _all_inside(strategy: object, repo: "CachedRepoInfo") -> bool:
    """Whether the deletion affects only this repository: two repositories may share a commit hash."""
    paths = [path for kind in ("repos", "snapshots", "refs", "blobs") for path in getattr(strategy, kind)]
    return bool(paths) and all(path.is_relative_to(repo.repo_path) for path in paths)


def _check_blob(blob: Path, in_use: OpenFiles) -> None:
    """Raises KeptError if a file is leased or open."""
    try:
        descriptor = os.open(blob, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        about = os.fstat(descriptor)
        if (about.st_dev, about.st_ino) in in_use or not lock_alone(descriptor):
            raise KeptError("is leased or open")
    finally:
        os.close(descriptor)
