"""Settings of the watchdog: a TOML file of limits and roots, checked when it is read. docs/watchdog.toml shows all.

[limits]
start = 0.85

[[root]]
kind = "logs"
path = "/tmp/tpu_logs"
names = ["*"]
"""

import contextlib
import dataclasses
import logging
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echotts.files import cache_root, read_text
from echotts.rundir.pause import RESUME_SHARE

LOGGER = logging.getLogger(__name__)
_SAID: set[str] = set()

KINDS = ("partial", "shards", "logs", "hub", "runs")
PARTIAL_NAMES = ("*.partial", "*.incomplete", "*.tmp", "*.part", "*.orbax-checkpoint-tmp*")
NAMES = {  # kind -> what in a root of that kind may go, where the file does not say
    "partial": PARTIAL_NAMES,
    "shards": ("*.tar",),
    "logs": ("*.log", "*.log.*", "*.out", "*.err", "*.INFO*", "*.WARNING*", "*.ERROR*"),
}
MIN_AGE_HOURS = {"partial": 1.0, "shards": 1.0, "logs": 24.0, "hub": 168.0, "runs": 1.0}
SYSTEM = tuple(map(Path, ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr")))
SHARED_MEMORY = Path("/dev/shm")  # of the system's folders the one in which people keep files of their own
TPU_LOGS, TPU_LOGS_GIB = Path("/tmp/tpu_logs"), 5.0
ONLY_FOR = {
    "names": tuple(NAMES),
    "max_gib": ("logs",),
    "keep": ("hub",),
    "keep_last": ("runs",),
    "keep_every": ("runs",),
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When cleaning starts and stops. Shares are of a filesystem's bytes or inodes, whichever is fuller."""

    start: float = 0.85
    """Cleaning starts at this share."""
    stop: float = 0.75
    """It stops at this one."""
    pause: float = 0.97
    """From here on the trainers are asked to save and wait."""
    resume: float = RESUME_SHARE
    """Below this share they go on."""
    min_free_gib: float = 5.0
    """Cleaning starts, too, where less is free, and goes on until it is."""
    min_free_inodes: int = 10_000
    """The same for inodes."""
    max_gib_per_pass: float = 500.0
    """The most that one pass deletes."""
    max_files_per_pass: int = 20_000
    """The most files and folders that one pass deletes."""
    interval_s: float = 30.0
    """Seconds between passes."""

    def __post_init__(self) -> None:
        if not 0 < self.stop <= self.start < self.pause <= 1 or not self.stop <= self.resume < self.pause:
            raise ValueError(
                f"limits: stop {self.stop} <= start {self.start} < pause {self.pause} <= 1 is needed, "
                f"and resume {self.resume} between stop and pause"
            )
        if self.min_free_gib < 0 or self.min_free_inodes < 0:
            raise ValueError("limits: min_free_gib and min_free_inodes must not be negative")
        if self.max_gib_per_pass <= 0 or self.max_files_per_pass < 1 or self.interval_s <= 0:
            raise ValueError("limits: max_gib_per_pass, max_files_per_pass and interval_s must be more than 0")


@dataclass(frozen=True, kw_only=True)
class Root:
    """One folder that the watchdog may clean, and as what."""

    kind: str
    """partial, shards, logs, hub (a Hugging Face cache) or runs (a run directory, or a folder of them)."""
    path: Path
    """An absolute path; ~ is the home folder."""
    names: tuple[str, ...] = ()
    """Patterns of the file names that may go; partial, shards and logs only."""
    min_age_hours: float = -1.0
    """Nothing that was written (shards, hub: read) since is deleted; negative: the kind's own."""
    max_gib: float = 0.0
    """logs: the most that they may take in all, however much room the disk has; 0: no such cap."""
    keep: tuple[str, ...] = ()
    """hub: repositories that stay, such as "facebook/dacvae-watermarked"."""
    keep_last: int = 0
    """runs: the newest whole checkpoints that stay; 0: as the run's own configuration says."""
    keep_every: int = 0
    """runs: checkpoints at multiples of so many steps stay, beside those that the run keeps for good."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.path}: kind {self.kind!r} is none of {', '.join(KINDS)}")
        for key, kinds in ONLY_FOR.items():
            if getattr(self, key) and self.kind not in kinds:
                raise ValueError(f"{self.path}: {key} is for kind {', '.join(kinds)}, not for {self.kind}")
        if self.keep_last < 0 or self.keep_every < 0 or self.max_gib < 0:
            raise ValueError(f"{self.path}: max_gib, keep_last and keep_every must not be negative")
        if any("/" in name or not name for name in self.names):
            raise ValueError(f"{self.path}: names are patterns of file names, without a folder")
        check_place(self.path)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Name patterns of what may be deleted."""
        return self.names or NAMES.get(self.kind, ())

    @property
    def min_age_s(self) -> float:
        """Seconds that something must have been left alone."""
        return 3600 * (self.min_age_hours if self.min_age_hours >= 0 else MIN_AGE_HOURS[self.kind])

    @property
    def partial_min_age_s(self) -> float:
        """The same for what is half written, which is left alone for an hour at most."""
        return min(self.min_age_s, 3600 * MIN_AGE_HOURS["partial"]) if self.kind != "partial" else self.min_age_s


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of the file."""

    limits: Limits = field(default_factory=Limits)
    roots: tuple[Root, ...]

    def __post_init__(self) -> None:
        if not self.roots:
            raise ValueError("no root: name at least one [[root]] with kind and path")
        for number, root in enumerate(self.roots):
            for other in self.roots[:number]:
                if root.path.is_relative_to(other.path) or other.path.is_relative_to(root.path):
                    raise ValueError(f"{root.path}: overlaps the root {other.path}; each file belongs to one root")


def with_run(settings: Settings, run_dir: Path) -> Settings:
    """The settings with this run directory as a root, where it lies in none of the runs that they name."""
    run_dir = run_dir.expanduser().absolute()
    if any(root.kind == "runs" and run_dir.is_relative_to(root.path) for root in settings.roots):
        return settings
    return dataclasses.replace(settings, roots=(*settings.roots, Root(kind="runs", path=run_dir)))


def with_live_runs(settings: Settings, run_dirs: Iterable[Path]) -> Settings:
    """The settings with these run directories, too; one that cannot be a root is left out and logged once."""
    for run_dir in run_dirs:
        try:
            settings = with_run(settings, run_dir)
        except ValueError as error:
            if str(error) not in _SAID:
                _SAID.add(str(error))
                LOGGER.warning("%s; this run is not watched", error)
    return settings


def default_settings() -> Settings:
    """Without a file: what echotts itself and its libraries write on this host, and nothing else.

    The cache of shards, spools of runs in buckets, libtpu's logs and the Hub's cache, each where it is allowed to be a
    root; run directories come by `with_run`.
    """
    wanted = [
        ("shards", cache_root() / "shards", {}),
        ("runs", cache_root() / "runs", {}),
        ("logs", TPU_LOGS, {"names": ("*",), "max_gib": TPU_LOGS_GIB}),
        ("hub", hub_cache(), {}),
    ]
    roots = []
    for kind, path, options in wanted:
        try:
            roots.append(Root(kind=kind, path=path, **options))
        except ValueError as error:
            LOGGER.warning("%s; it is not watched", error)
    return Settings(roots=tuple(roots))


def hub_cache() -> Path:
    """The Hub's cache, as huggingface_hub finds it; without its import, which takes long."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen)
    home = os.environ.get("HF_HOME") or cache_root().parent / "huggingface"
    return Path(home).expanduser() / "hub"


def load_settings(path: Path) -> Settings:
    """Reads and checks the file. ValueError or FileNotFoundError names the file, the place and the remedy."""
    try:
        content = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: is not TOML: {error}") from error
    try:
        _check_keys(content, ("limits", "root"), "the file")
        limits, roots = content.get("limits", {}), content.get("root", [])
        if not isinstance(limits, dict) or not isinstance(roots, list):
            raise ValueError("limits is one table, [limits]; roots are tables, [[root]]")
        return Settings(limits=_fill(Limits, limits, "[limits]"), roots=tuple(map(_root, roots)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_place(path: Path) -> None:
    """ValueError where a root must not be: a relative path, the system's, a home or above it, behind a symlink."""
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{path}: a root is an absolute path without ..")
    real = Path(os.path.realpath(path))
    homes = [Path("/root"), Path("/home/any")]
    with contextlib.suppress(RuntimeError):  # no HOME and no entry in passwd
        homes += [Path.home(), Path(os.path.realpath(Path.home()))]
    for place in (path, real):
        if any(home.is_relative_to(place) for home in homes):
            raise ValueError(f"{path}: {place} must not be a root; name the folder inside it that may be cleaned")
        system = next((name for name in SYSTEM if place.is_relative_to(name)), None)
        if system and SHARED_MEMORY not in place.parents:
            raise ValueError(f"{path}: {system} is the system's and must not be a root")
    if real != path:
        raise ValueError(f"{path}: is reached through a symlink; name the folder itself, {real}")


def _root(content: Any) -> Root:
    if not isinstance(content, dict) or not {"kind", "path"} <= content.keys():
        raise ValueError("each [[root]] needs kind and path")
    given = dict(content)
    where = f"[[root]] {given['path']}"
    given["path"] = Path(str(given["path"])).expanduser()
    return _fill(Root, given, where)


def _fill(kind: type, given: dict[str, Any], where: str) -> Any:
    """The dataclass from a TOML table; lists of strings become tuples."""
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    _check_keys(given, tuple(fields), where)
    values = {name: _value(value, str(fields[name].type), f"{where}: {name}") for name, value in given.items()}
    return kind(**values)


def _value(value: Any, wanted: str, where: str) -> Any:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if "float" in wanted and (is_whole or isinstance(value, float)):
        return float(value)
    if "int" in wanted and is_whole:
        return value
    if "tuple" in wanted and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if ("'str'" in wanted and isinstance(value, str)) or isinstance(value, Path):
        return value
    raise ValueError(f"{where} = {value!r}: a {'list of strings' if 'tuple' in wanted else 'number or text'} is needed")


def _check_keys(given: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{where}: unknown key {name!r}; known are {', '.join(known)}")
