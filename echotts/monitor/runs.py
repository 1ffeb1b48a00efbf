"""Runs and their summaries: hosts, checkpoints, configuration, history; and the library of the runs that are shown."""

import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from echotts.monitor.folders import Folder, hashed, open_folder, shown, walk
from echotts.monitor.history import History
from echotts.monitor.hosts import Ends, FileEnd
from echotts.monitor.status import Status, finite, status_of
from echotts.rundir.layout import CHECKPOINT_METADATA, CHECKPOINTS, COMMITTED, CONFIG, METRICS, SAMPLES, STEP
from echotts.strict_json import load_json

CONFIG_BYTES = 1 << 20
UNFINISHED = re.compile(rf"{STEP.pattern}\.orbax-checkpoint-tmp.*")
LARGE_BYTES = 32 << 20  # size of a run's metrics files from which they are read in a thread, after a preview
FOLDERS_S = 5.0  # listings of checkpoints, samples, configuration and runs are reused for this long
HISTORIES_BYTES = 64 << 20  # kept in memory, besides the most recently used one


class Run:
    """One run directory. Results are reused for `folder.refresh_s`. Thread-safe."""

    def __init__(self, folder: Folder, name: str, stale_s: float | None = None):
        self.folder = folder
        self.name = shown(name)
        self.id = hashed(folder.spec)[:10]
        self.lock = threading.RLock()
        self.used = 0.0  # when its history was last used; time.monotonic
        self.stale_s = stale_s
        self._ends = Ends(folder)
        self._checkpoints: dict[str, dict[str, Any]] = {}
        self._looks: dict[str, tuple[float, Any]] = {}
        self._rough: History | None = None
        self._whole: History | None = None
        self._opening: threading.Thread | None = None

    def ends(self) -> list[FileEnd]:
        """The last lines of each metrics file."""
        return self._look("ends", self._ends.look)

    def config(self) -> dict[str, Any]:
        """The run's configuration; empty if it is missing or unreadable."""
        return self._look("config", self._read_config, FOLDERS_S)

    def checkpoints(self) -> list[dict[str, Any]]:
        """Newest first: step, time of writing, bytes, whether it is complete."""
        return self._look("checkpoints", self._read_checkpoints, FOLDERS_S)

    def status(self, now: float) -> Status:
        """The state of the run at `now`, Unix s."""
        return status_of(self.ends(), now, self.stale_s, self._steps())

    def latest(self, name: str) -> float | None:
        """The latest value of a metric among the last lines of all hosts; None if they lack it."""
        told = [end for end in self.ends() if name in end.numbers and end.time is not None]
        return finite(max(told, key=lambda end: (end.time or 0.0, -end.process)).numbers[name]) if told else None

    def hosts(self) -> list[dict[str, Any]]:
        """One row per host: its latest numbers, including its watchdog's."""
        by_host: dict[str, list[FileEnd]] = {}
        for end in self.ends():
            if end.time is not None:
                by_host.setdefault(end.file.host, []).append(end)
        rows = []
        for host, ends in by_host.items():
            ends.sort(key=lambda end: end.time or 0.0)
            numbers = {name: finite(value) for end in ends for name, value in end.numbers.items()}
            trainers = [end for end in ends if end.process >= 0]
            said = (trainers or ends)[-1]
            step = said.step if trainers else None
            rows.append(
                {"host": host, "process": said.process, "last_time": ends[-1].time, "step": step, "numbers": numbers}
            )
        furthest = max((row["step"] for row in rows if row["step"] is not None), default=0)
        for row in rows:
            lag = None if row["step"] is None else furthest - row["step"]
            # Of hosts at the same step, the one that is late says so itself.
            row["lag_steps"] = int(row["numbers"].get("host/lag_steps") or 0) if lag == 0 else lag
        return sorted(rows, key=lambda row: (row["process"] < 0, row["process"], row["host"]))

    def missing(self, names: Iterable[str]) -> list[str]:
        """What the page should report as missing, and how to get it."""
        names, said = set(names), []
        if not self.config():
            said.append(f"no {CONFIG}: total steps and configuration are unknown")
        if "heldout/loss" not in names:
            said.append("no evaluation loss yet: set --heldout and --run.eval_every")
        if "host/disk_free_share" not in names:
            said.append("no disk and cache figures: run `echotts watchdog` on each host")
        if "throughput/mfu_share" not in names:
            said.append("no MFU: the trainer does not know this device's peak FLOP/s")
        if "device/memory_bytes" not in names:
            said.append("no device memory: this device does not report it")
        if "data/audio_hours" not in names:
            said.append("no hours of audio: these lines are from an older version")
        if not self._look("samples", lambda: self.folder.entries(SAMPLES), FOLDERS_S):
            said.append("no speech samples yet: set --run.sentences and --run.sample_every")
        if not self.checkpoints():
            said.append("no checkpoint yet")
        return said

    def history(self, *, whole: bool = False) -> History:
        """The run's numbers. Large files are read in a thread; meanwhile a preview is returned unless `whole`."""
        with self.lock:
            self.used = time.monotonic()
            if self._whole is None and self._opening is None:
                self._begin_opening()
            opening, rough = self._opening, self._rough
        if opening is not None:
            if rough is not None and not whole:
                return rough
            opening.join()
        with self.lock:
            assert self._whole is not None
            self._look("history", self._whole.refresh)
            return self._whole

    def _begin_opening(self) -> None:
        """Reads small files immediately, large ones in a thread."""
        history = History(self.folder)
        if sum(end.file.size_bytes for end in self.ends()) <= LARGE_BYTES:
            history.refresh()
            self._whole = history
            return
        self._rough = history.preview()
        self._opening = threading.Thread(target=self._open, args=(history,), daemon=True)
        self._opening.start()

    @property
    def opened(self) -> History | None:
        """The complete history, if it has been read."""
        return self._whole

    @property
    def is_rough(self) -> bool:
        """Whether `history` currently returns a preview."""
        return self._opening is not None

    def close(self) -> None:
        """Frees the history; it is read again when needed."""
        with self.lock:
            if self._opening is None:
                self._whole = None

    def _open(self, whole: History) -> None:
        whole.refresh()
        with self.lock:
            self._whole, self._rough, self._opening = whole, None, None

    def _look(self, what: str, read: Callable[[], Any], every_s: float = 0.0) -> Any:
        with self.lock:
            looked, found = self._looks.get(what, (-math.inf, None))
            if time.monotonic() - looked >= max(every_s, self.folder.refresh_s):
                found = read()
                self._looks[what] = (time.monotonic(), found)
            return found

    def _read_config(self) -> dict[str, Any]:
        try:
            return load_json(self.folder.read(CONFIG, 0, CONFIG_BYTES), CONFIG, dict[str, Any])
        except (OSError, ValueError):
            return {}

    def _steps(self) -> int | None:
        optim = self.config().get("optim")
        steps = optim.get("steps") if isinstance(optim, dict) else None
        return steps if isinstance(steps, int) and steps > 0 else None

    def _read_checkpoints(self) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for entry in self.folder.entries(CHECKPOINTS):
            whole, partial = STEP.fullmatch(entry.name), UNFINISHED.fullmatch(entry.name)
            if not entry.is_folder or not (whole or partial):
                continue
            known = self._checkpoints.get(entry.name)
            if known and known["complete"] and known["modified"] == entry.modified:
                found[entry.name] = known  # complete checkpoints do not change, and have hundreds of files
                continue
            path = f"{CHECKPOINTS}/{entry.name}"
            files = dict(walk(self.folder, path))
            needed = {f"{path}/{CHECKPOINT_METADATA}", f"{path}/{COMMITTED}"}
            found[entry.name] = {
                "step": int(entry.name.removeprefix("step_").partition(".")[0]),
                "modified": entry.modified,
                "written": entry.modified
                or max((file.modified or 0.0 for file in files.values()), default=0.0)
                or None,
                "bytes": sum(file.size_bytes for file in files.values()),
                "complete": whole is not None and needed <= files.keys(),
            }
        self._checkpoints = found
        return sorted(found.values(), key=lambda checkpoint: -checkpoint["step"])


class Library:
    """The runs that are shown: named ones, and all below a root, which is rescanned."""

    def __init__(self, specs: Iterable[str], root: str | None, stale_s: float | None = None):
        self._stale_s = stale_s
        self._root = open_folder(root) if root else None
        self._runs: dict[str, Run] = {}
        self._looked = -math.inf
        self._lock = threading.Lock()
        for spec in specs:
            self._add(spec)

    def runs(self) -> list[Run]:
        """All runs, named ones first."""
        with self._lock:
            if self._root and time.monotonic() - self._looked > FOLDERS_S:
                self._looked = time.monotonic()
                for entry in self._root.entries():
                    below = {found.name for found in self._root.entries(entry.name)} if entry.is_folder else set()
                    if below & {CONFIG, METRICS}:
                        self._add(f"{self._root.spec}/{entry.name}")
            return list(self._runs.values())

    def find(self, run_id: str) -> Run | None:
        return next((run for run in self.runs() if run.id == run_id), None)

    def make_room(self) -> None:
        """Frees the least recently used histories, down to HISTORIES_BYTES besides the newest."""
        opened = sorted((run for run in self.runs() if run.opened), key=lambda run: run.used)
        total = sum(run.opened.bytes for run in opened if run.opened)
        for run in opened[:-1]:
            if total <= HISTORIES_BYTES:
                return
            total -= run.opened.bytes if run.opened else 0
            run.close()

    def _add(self, spec: str) -> None:
        folder = open_folder(spec.rstrip("/") or spec)
        name = folder.spec.rstrip("/").rpartition("/")[2] or folder.spec
        if folder.spec not in self._runs:
            taken = {run.name for run in self._runs.values()}
            unique = name if shown(name) not in taken else "/".join(folder.spec.rstrip("/").split("/")[-2:])
            self._runs[folder.spec] = Run(folder, unique, self._stale_s)


def differences(configs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Dotted keys whose values differ between configurations, with each value (None: missing)."""
    flat = {run: _flat(config, "") for run, config in configs.items()}
    keys = sorted(set().union(*flat.values())) if flat else []
    rows = [{"key": key, "values": {run: values.get(key) for run, values in flat.items()}} for key in keys]
    return [row for row in rows if len({orjson.dumps(value) for value in row["values"].values()}) > 1]


def _flat(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    flat: dict[str, Any] = {}
    for name, below in value.items():
        flat |= _flat(below, f"{path}.{name}" if path else name)
    return flat
