"""The location of a run: a directory on this machine (or one that all machines mount), or a path in a bucket.

    with open_run_dir("gs://bucket/run") as run_dir:
        run_dir.shared / "checkpoints"      # seen by all processes and by later runs
        run_dir.local / "metrics"           # written incrementally by this process

On a disk both are the same directory. For a run in a bucket, `local` is a folder on this machine whose files are
uploaded in the background (spool.py), so that writers of metrics and samples need not care. What a resumed run depends
on goes directly to `shared`, where a file appears only once it is complete.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from etils import epath

from echotts import files, gcs
from echotts.rundir.spool import Spool

RunPath = Path | epath.Path
"""A path on this machine, or one in a bucket (Orbax's path type)."""


def run_path(spec: str | RunPath) -> RunPath:
    """The path of a run directory from its name. ValueError for an unsupported URL scheme."""
    name = os.fspath(spec)
    if gcs.is_bucket(name):
        gcs.open_bucket(name)
        return epath.Path(name)
    if "://" in name:
        raise ValueError(f"{name}: a run directory must be a local directory or gs://bucket/run")
    return Path(name).expanduser().absolute()


def check_run_dir(spec: str) -> None:
    """Checks early that the run directory can be written; ValueError or OSError if not."""
    if not spec:
        raise ValueError("no run directory: set one with --run_dir, for checkpoints and metrics")
    if gcs.is_bucket(run_path(spec)):
        gcs.check(spec)


@dataclass(frozen=True)
class RunDir:
    """An opened run directory."""

    shared: RunPath
    local: Path
    spool: Spool | None

    @contextlib.contextmanager
    def sent_if_it_fails(self) -> Iterator[None]:
        """Uploads what was written if an error occurs inside, before the error propagates."""
        try:
            yield
        except BaseException:
            self.send()
            raise

    def send(self) -> None:
        """Waits, at most spool.FLUSH_S, until everything written so far is in the bucket."""
        if self.spool is not None:
            self.spool.flush()

    def shown(self, path: Path) -> RunPath:
        """The path in the run directory that corresponds to a path below `local`, for messages."""
        return self.shared / path.relative_to(self.local)


@contextlib.contextmanager
def open_run_dir(spec: str, *, create: bool = True) -> Iterator[RunDir]:
    """Opens the run directory; `create` creates it if missing (one of several processes does). OSError on failure."""
    shared = run_path(spec)
    if isinstance(shared, Path):
        if create:
            shared.mkdir(parents=True, exist_ok=True)
        yield RunDir(shared, shared, None)
        return
    with Spool(str(shared)) as spool:
        yield RunDir(shared, spool.folder, spool)


def write_whole(path: RunPath, text: str) -> None:
    """Writes a small file atomically."""
    if isinstance(path, Path):
        files.write_whole(path, text)
        return
    fs, name = gcs.open_bucket(str(path))
    with gcs.plain_errors(path):
        fs.pipe_file(name, text.encode())


def read_whole(path: RunPath) -> str | None:
    """The text of a file; None if it does not exist."""
    try:
        with gcs.plain_errors(path):
            return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
