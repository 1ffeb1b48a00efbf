"""Where a run lives: a directory of this machine (or one that all machines mount), or a place in a bucket.

    with open_run_dir("gs://bucket/run") as run_dir:
        run_dir.shared / "checkpoints"      # what all processes and later runs see
        run_dir.local / "metrics"           # what this process writes, piece by piece

On a disk both are the same directory. Of a run in a bucket `local` is a folder of this machine whose files are brought
there behind (spool.py), so that who writes metrics or samples need not know; what a resumed run depends on goes to
`shared` at once, where a file appears whole or not at all.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from etils import epath

from echotts import gcs
from echotts.files import atomic_write
from echotts.rundir.spool import Spool

RunPath = Path | epath.Path
"""A path of this machine, or one in a bucket (Orbax's own kind of path)."""


def run_path(spec: str | RunPath) -> RunPath:
    """What a run directory's name means. ValueError where nothing here writes such a place."""
    name = os.fspath(spec)
    if gcs.is_bucket(name):
        gcs.open_bucket(name)
        return epath.Path(name)
    if "://" in name:
        raise ValueError(f"{name}: runs live in directories of this machine or in gs://bucket/run; give one of these")
    return Path(name).expanduser().absolute()


def check_run_dir(spec: str) -> None:
    """Before anything that takes long: ValueError or OSError where nothing can be written there."""
    if not spec:
        raise ValueError("no run directory: say where checkpoints and metrics go with --run_dir")
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
        """What was written before something in here failed goes to the bucket before the program ends of it."""
        try:
            yield
        except BaseException:
            self.send()
            raise

    def send(self) -> None:
        """Waits until what was written by now is in the bucket, but not for long (spool.FLUSH_S)."""
        if self.spool is not None:
            self.spool.flush()

    def shown(self, path: Path) -> RunPath:
        """A path below `local`, as the user knows it."""
        return self.shared / path.relative_to(self.local)


@contextlib.contextmanager
def open_run_dir(spec: str, *, create: bool = True) -> Iterator[RunDir]:
    """The run directory; `create` makes a missing one (of several processes one does). OSError where that fails."""
    shared = run_path(spec)
    if isinstance(shared, Path):
        if create:
            shared.mkdir(parents=True, exist_ok=True)
        yield RunDir(shared, shared, None)
        return
    with Spool(str(shared)) as spool:
        yield RunDir(shared, spool.folder, spool)


def write_whole(path: RunPath, text: str) -> None:
    """A small file that is there whole or not at all."""
    if isinstance(path, Path):
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    fs, name = gcs.open_bucket(str(path))
    with gcs.plainly(path):
        fs.pipe_file(name, text.encode())


def read_whole(path: RunPath) -> str | None:
    """Its text; None where there is no such file."""
    try:
        with gcs.plainly(path):
            return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
