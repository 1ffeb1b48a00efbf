"""What a run writes beside its checkpoints, on its way to a bucket.

Files of the spool, a folder of this machine laid out like a run directory, are sent to the bucket every EVERY_S by a
thread. Whatever happens there, training does not notice: what could not be sent is sent later, or by the next start of
the run on this machine, since a spool stays until all of it has arrived.

Lines, and TensorBoard's events, are appended: the new ones become an object of their own, which the bucket then joins
to the file's end (compose). So a run that goes on elsewhere adds to what is there. Every other file is sent whole when
it has changed.

    ~/.cache/echotts/runs/<run>-<hash>.<start>/owner      locked while a process owns the spool
                                              /.sent.json what has arrived of each file
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from echotts import gcs
from echotts.files import atomic_write, cache_root
from echotts.rundir.layout import CHECKPOINTS, PROFILE, TRAINER, WRITER

LOGGER = logging.getLogger(__name__)

EVERY_S = 30.0
FLUSH_S = 15.0  # that a failing run waits for its last lines
CLOSE_S = 45.0  # that a run waits at its end; below what the processes of a run wait for each other then
TRIES = 20  # to be the next who appends to a file
OWNER, STATE = "owner", ".sent.json"
LINES, EVENTS = ".jsonl", "tensorboard/"  # how the names of files end, or begin, that only ever grow
NEW_LINES = ".new"  # behind the name of the object that is about to be joined to a file
HERE_ONLY = (
    OWNER,
    WRITER,
    TRAINER,
    PROFILE,
)  # of this machine, as are pause.<host>.json and all names that begin with a dot
LEFT_OPEN = CHECKPOINTS  # by which the disk watchdog knows a run directory; those of this run are in the bucket


def default_root() -> Path:
    """~/.cache/echotts/runs, or below XDG_CACHE_HOME."""
    return cache_root() / "runs"


class Spool:
    """The spool of one process; within `with`, its files are on their way to `url`."""

    def __init__(self, url: str, root: Path | None = None) -> None:
        """Makes the folder. OSError where this machine cannot hold it."""
        self.url = url
        name = f"{url.rstrip('/').rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
        self._root = root or default_root()
        self.folder = self._root / f"{name}.{time.time_ns() // 1000}"
        try:
            self._owner = _own(self.folder)
            (self.folder / LEFT_OPEN).mkdir()
        except OSError as error:
            raise OSError(
                f"{self.folder}: {error.strerror}: what goes to {url} passes through there; XDG_CACHE_HOME moves it"
            ) from error
        LOGGER.info("%s: lines and samples pass through %s", url, self.folder)
        self._left = [folder for folder in sorted(self._root.glob(f"{name}.*")) if folder != self.folder]
        self._sender = Sender(self.folder, url)
        self._wake = threading.Event()
        self._asked: list[threading.Event] = []
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)

    def flush(self, limit_s: float = FLUSH_S, *, last: bool = False) -> bool:
        """Sends what there is now; False where that was not done within the limit."""
        done = threading.Event()
        self._asked.append(done)
        self._closing |= last  # after the line above: the thread does not end without an answer
        self._wake.set()
        return done.wait(limit_s) and not self._failing

    def __enter__(self) -> "Spool":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.flush(FLUSH_S if error else CLOSE_S, last=True):
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            LOGGER.warning(
                "%s: not all lines and samples have arrived; they are in %s, from where the next start of this run on "
                "this machine sends them",
                *(self.url, self.folder),
            )
        os.close(self._owner)

    def _run(self) -> None:
        while True:
            self._wake.wait(EVERY_S)
            self._wake.clear()
            closing = self._closing
            asked, self._asked = self._asked, []
            self._send()
            for done in asked:
                done.set()
            if closing:
                return

    def _send(self) -> None:
        """What earlier starts left first, so that lines stay in order."""
        try:
            while self._left:
                self._send_left(self._left[0])
                del self._left[0]
            self._sender.send()
        except (*gcs.failures(), ValueError, RuntimeError) as error:  # the last two: answers it does not understand
            if not self._failing:
                LOGGER.warning("%s: cannot be written, trying on: %s", self.url, gcs.describe(error))
            self._failing = True
            return
        if self._failing:
            LOGGER.warning("%s: can be written again", self.url)
        self._failing = False

    def _send_left(self, folder: Path) -> None:
        try:
            owner = _own(folder)
        except (BlockingIOError, FileNotFoundError):  # it is in use, or another process has just sent it
            return
        try:
            Sender(folder, self.url).send()
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(owner)


class Sender:
    """Brings the files of a folder below `url`, as far as they are new."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._fs, self._target = gcs.open_bucket(url)
        self._sent: dict[str, list[int]] = _read_state(folder / STATE)

    def send(self) -> None:
        """All that is new now. Raises one of `gcs.failures`; what was sent by then is known."""
        for path in self._files():
            name = path.relative_to(self._folder).as_posix()
            found = path.stat()
            before = self._sent.get(name)
            if name.endswith(LINES) or name.startswith(EVENTS):
                self._append(path, name, before[0] if before else 0, found.st_size)
            elif before != [found.st_size, found.st_mtime_ns]:
                self._fs.pipe_file(f"{self._target}/{name}", _read(path, 0, found.st_size))
                self._note(name, [found.st_size, found.st_mtime_ns])

    def _files(self) -> Iterator[Path]:
        for path in sorted(self._folder.rglob("*")):
            parts = path.relative_to(self._folder).parts
            hidden = any(part.startswith(".") for part in parts)
            if not hidden and parts[0] not in HERE_ONLY and not parts[0].startswith("pause.") and path.is_file():
                yield path

    def _append(self, path: Path, name: str, start: int, size: int) -> None:
        """Appends what there is from byte `start` on, of lines the whole ones."""
        new = _read(path, start, size - start)
        if name.endswith(LINES):
            new = new[: new.rfind(b"\n") + 1]
        if not new:
            return
        target = f"{self._target}/{name}"
        for _ in range(TRIES):
            generation, length = self._there(target)
            try:
                self._join(target, generation, new)
                break
            except FileExistsError:  # it is another by now; by this very request, where only the answer was lost
                if self._fs.cat_file(target, start=length, end=length + len(new)) == new:
                    break
        else:
            raise OSError(f"others wrote to {name} each of {TRIES} times")
        self._note(name, [start + len(new)])

    def _there(self, target: str) -> tuple[str, int]:
        """(generation, bytes) of an object; ("0", 0) where there is none."""
        try:
            found = self._fs.info(target)
        except FileNotFoundError:
            return "0", 0
        return found["generation"], found["size"]

    def _join(self, target: str, generation: str, new: bytes) -> None:
        """Makes `new` the end of an object. FileExistsError where it is not this generation: others append as well."""
        if generation == "0":
            self._fs.pipe_file(target, new, mode="create")
            return
        bucket, _, key = target.partition("/")
        part = f"{key}{NEW_LINES}.{os.getpid()}"
        self._fs.pipe_file(f"{bucket}/{part}", new)
        try:
            self._fs.call(
                *("POST", "b/{}/o/{}/compose", bucket, key),
                ifGenerationMatch=generation,
                json={"sourceObjects": [{"name": key}, {"name": part}]},
            )
        finally:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(f"{bucket}/{part}")

    def _note(self, name: str, arrived: list[int]) -> None:
        self._sent[name] = arrived
        with atomic_write(self._folder / STATE) as path:
            path.write_text(json.dumps(self._sent), encoding="utf-8")


def _own(folder: Path) -> int:
    """Locks a spool for this process. BlockingIOError where another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    owner = os.open(folder / OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(owner)
        raise
    return owner


def _read(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


def _read_state(path: Path) -> dict[str, list[int]]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
