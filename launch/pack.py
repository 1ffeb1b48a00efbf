"""The code as one archive: the tree of a commit, named after it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from launch.errors import LaunchError

SHORT = 12  # hexadecimal digits of a commit


@dataclass(frozen=True)
class Package:
    """An archive of the code. `release` names its content: the commit, and the tree where that is another."""

    release: str
    path: Path
    sha256: str
    sent: tuple[str, ...]  # uncommitted files that are in it
    left: tuple[str, ...]  # uncommitted files that are not

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size


def pack(source: Path, *, dirty: bool, folder: Path) -> Package:
    """Writes the archive of `source`'s HEAD, or with `dirty` of the files as they lie there, into `folder`.

    Ignored files are never in it. The same content has the same release.
    """
    release, tree, changed = identify(source, dirty=dirty)
    path = folder / f"{release}.tar.gz"
    _git(source, "archive", "--format=tar.gz", f"--output={path}", tree)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Package(release, path, digest, sent=changed if dirty else (), left=() if dirty else changed)


def identify(source: Path, *, dirty: bool) -> tuple[str, str, tuple[str, ...]]:
    """(release, git tree, files that differ from HEAD) of a repository. LaunchError where it is none."""
    if not source.is_dir():
        raise LaunchError(f"{source}: no such directory; name the repository with --source")
    commit = _git(source, "rev-parse", "--verify", "HEAD^{commit}")
    lines = _git(source, "status", "--porcelain", "--untracked-files=all").splitlines()
    changed = tuple(line[3:] if len(line) > 3 else line for line in lines)
    if not (dirty and changed):
        return commit[:SHORT], commit, changed
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}  # the user's index is not changed
        _git(source, "read-tree", "HEAD", env=index)
        _git(source, "add", "--all", env=index)
        tree = _git(source, "write-tree", env=index)
    return f"{commit[:SHORT]}-dirty-{tree[:8]}", tree, changed


def _git(source: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    command = ["git", "-C", str(source), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False)
    except FileNotFoundError:
        raise LaunchError("git is not installed, and the code is sent as a git archive") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise LaunchError(f"{source}: git {arguments[0]} failed: {said[-1]}")
    return done.stdout.rstrip("\n")
