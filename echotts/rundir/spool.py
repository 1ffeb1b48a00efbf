"""The spool through which a run's files, other than checkpoints, reach a bucket.

The spool is a folder on this machine laid out like a run directory. A thread uploads its files every EVERY_S. Upload
errors do not affect training: what could not be sent is sent later, or by the next start of the run on this machine,
since a spool is kept until everything has arrived.

Metrics lines and TensorBoard events are appended: new ones become a separate object that the bucket then joins to the
end of the file (compose), so a run that is resumed elsewhere adds to the file. Every other file is uploaded as a whole
when it has changed.

    ~/.cache/echotts/runs/<run>-<hash>.<start>/owner      locked while a process owns the spool
                                              /.sent.json what has arrived of each file
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from echotts import gcs
from echotts.files import cache_root, write_json
from echotts.rundir.layout import CHECKPOINTS, PROFILE, WRITER
from echotts.strict_json import load_json

LOGGER = logging.getLogger(__name__)

EVERY_S = 30.0
FLUSH_S = 15.0  # how long a failing run waits for its last lines
CLOSE_S = 45.0  # how long a finishing run waits; less than its processes wait for each other
MAX_APPENDS = 20  # attempts to append to a file that others append to as well
OWNER, STATE = "owner", ".sent.json"
STATE_BYTES = 64 << 20
LINES, EVENTS = ".jsonl", "tensorboard/"  # suffix and prefix of the names of append-only files
NEW_LINES = ".new"  # suffix of the object that is about to be joined to a file
LOCAL_ONLY = (  # not uploaded, like pause.<host>.json and all names that begin with a dot
    OWNER,
    WRITER,
    PROFILE,
)
MARKER = CHECKPOINTS  # marks the spool as a run directory for the disk watchdog; it stays empty


def default_root() -> Path:
    """~/.cache/echotts/runs, or below XDG_CACHE_HOME."""
    return cache_root() / "runs"


class Spool:
    """The spool of one process; as a context manager it uploads its files to `url`."""

    def __init__(self, url: str, root: Path | None = None) -> None:
        """Creates the folder. OSError if that fails."""
        self.url = url
        name = f"{url.rstrip('/').rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
        self._root = root or default_root()
        self.folder = self._root / f"{name}.{time.time_ns() // 1000}"
        try:
            self._owner = _own(self.folder)
            (self.folder / MARKER).mkdir()
        except OSError as error:
            raise OSError(
                f"{self.folder}: {error.strerror}: files for {url} are staged there; set XDG_CACHE_HOME to move it"
            ) from error
        LOGGER.info("%s: metrics and samples are staged in %s", url, self.folder)
        self._left = [folder for folder in sorted(self._root.glob(f"{name}.*")) if folder != self.folder]
        self._sender = Sender(self.folder, url)
        self._wake = threading.Event()
        self._asked: list[threading.Event] = []
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)

    def flush(self, limit_s: float = FLUSH_S, *, last: bool = False) -> bool:
        """Uploads everything written so far; False if that was not done within the limit."""
        done = threading.Event()
        self._asked.append(done)
        self._closing |= last  # set after the line above, so that the thread does not end without answering
        self._wake.set()
        return done.wait(limit_s) and not self._failing

    def __enter__(self) -> "Spool":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.flush(FLUSH_S if error else CLOSE_S, last=True):
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            LOGGER.warning(
                "%s: not all metrics and samples were uploaded; they are in %s, and the next start of this run on this "
                "machine uploads them",
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
        """Uploads what earlier starts left behind first, so that lines stay in order."""
        try:
            while self._left:
                self._send_left(self._left[0])
                del self._left[0]
            self._sender.send()
        except (*gcs.failures(), ValueError, RuntimeError) as error:  # the last two: unexpected answers
            if not self._failing:
                LOGGER.warning("%s: cannot be written, retrying: %s", self.url, gcs.describe(error))
            self._failing = True
            return
        if self._failing:
            LOGGER.warning("%s: can be written again", self.url)
        self._failing = False

    def _send_left(self, folder: Path) -> None:
        try:
            owner = _own(folder)
        except (BlockingIOError, FileNotFoundError):  # in use, or just uploaded by another process
            return
        try:
            Sender(folder, self.url).send()
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(owner)


class Sender:
    """Uploads new files, and new parts of files, of a folder to `url`."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._fs, self._target = gcs.open_bucket(url)
        self._sent: dict[str, list[int]] = _read_state(folder / STATE)

    def send(self) -> None:
        """Uploads everything new. Raises one of `gcs.failures`; what was sent by then is recorded."""
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
            if not hidden and parts[0] not in LOCAL_ONLY and not parts[0].startswith("pause.") and path.is_file():
                yield path

    def _append(self, path: Path, name: str, start: int, size: int) -> None:
        """Appends everything from byte `start` on; for lines, only complete ones."""
        new = _read(path, start, size - start)
        if name.endswith(LINES):
            new = new[: new.rfind(b"\n") + 1]
        if not new:
            return
        target = f"{self._target}/{name}"
        for _ in range(MAX_APPENDS):
            generation, length = self._there(target)
            try:
                self._join(target, generation, new)
                break
            except FileExistsError:  # the object changed, perhaps by this request, if only its answer was lost
                if self._fs.cat_file(target, start=length, end=length + len(new)) == new:
                    break
        else:
            raise OSError(f"{name} was changed by others in each of {MAX_APPENDS} attempts")
        self._note(name, [start + len(new)])

    def _there(self, target: str) -> tuple[str, int]:
        """(generation, bytes) of an object; ("0", 0) if there is none."""
        try:
            found = self._fs.info(target)
        except FileNotFoundError:
            return "0", 0
        return found["generation"], found["size"]

    def _join(self, target: str, generation: str, new: bytes) -> None:
        """Appends `new` to an object. FileExistsError if its generation differs, because others append as well."""
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
        write_json(self._folder / STATE, self._sent)


def _own(folder: Path) -> int:
    """Locks a spool for this process. BlockingIOError if another process has it."""
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
        return load_json(path.read_bytes(), path, dict[str, list[int]], max_bytes=STATE_BYTES)
    except (OSError, ValueError):
        return {}
