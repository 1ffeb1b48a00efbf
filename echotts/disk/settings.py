"""Settings of the watchdog: a TOML file of limits and roots, validated on reading. docs/watchdog.toml is an example.

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
from echotts.strict_json import check_type

LOGGER = logging.getLogger(__name__)
_WARNED: set[str] = set()

KINDS = ("partial", "shards", "logs", "hub", "runs")
PARTIAL_NAMES = ("*.partial", "*.incomplete", "*.tmp", "*.part", "*.orbax-checkpoint-tmp*")
NAMES = {  # kind -> default patterns of files that may be deleted
    "partial": PARTIAL_NAMES,
    "shards": ("*.tar",),
    "logs": ("*.log", "*.log.*", "*.out", "*.err", "*.INFO*", "*.WARNING*", "*.ERROR*"),
}
MIN_AGE_HOURS = {"partial": 1.0, "shards": 1.0, "logs": 24.0, "hub": 168.0, "runs": 1.0}
SYSTEM = tuple(map(Path, ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr")))
SHARED_MEMORY = Path("/dev/shm")  # the one system folder that holds users' files
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
    """When cleaning starts and stops. Shares are of a file system's bytes or inodes, whichever is fuller."""

    start: float = 0.85
    """Used share at which cleaning starts."""
    stop: float = 0.75
    """Used share at which cleaning stops."""
    pause: float = 0.97
    """Used share from which trainers are asked to save and wait."""
    resume: float = RESUME_SHARE
    """Used share below which they continue."""
    min_free_gib: float = 5.0
    """Cleaning also starts if less than this is free, and goes on until it is free."""
    min_free_inodes: int = 10_000
    """The same limit for inodes."""
    max_gib_per_pass: float = 500.0
    """Maximum deleted in one pass."""
    max_files_per_pass: int = 20_000
    """Maximum number of files and folders deleted in one pass."""
    interval_s: float = 30.0
    """Seconds between passes."""

    def __post_init__(self) -> None:
        if not 0 < self.stop <= self.start < self.pause <= 1 or not self.stop <= self.resume < self.pause:
            raise ValueError(
                f"need stop {self.stop} <= start {self.start} < pause {self.pause} <= 1 "
                f"and resume {self.resume} between stop and pause"
            )
        if self.min_free_gib < 0 or self.min_free_inodes < 0:
            raise ValueError("min_free_gib and min_free_inodes must not be negative")
        if self.max_gib_per_pass <= 0 or self.max_files_per_pass < 1 or self.interval_s <= 0:
            raise ValueError("max_gib_per_pass, max_files_per_pass and interval_s must be positive")


@dataclass(frozen=True, kw_only=True)
class Root:
    """A folder that the watchdog may clean, and what kind of files it holds."""

    kind: str
    """partial, shards, logs, hub (a Hugging Face cache) or runs (a run directory, or a folder of them)."""
    path: Path
    """An absolute path; ~ is the home folder."""
    names: tuple[str, ...] = ()
    """Patterns of file names that may be deleted; partial, shards and logs only."""
    min_age_hours: float = -1.0
    """Minimum time since the last write (shards, hub: also read); negative: the default of the kind."""
    max_gib: float = 0.0
    """logs: maximum total size, however much space is free; 0: no cap."""
    keep: tuple[str, ...] = ()
    """hub: repositories to keep, such as "facebook/dacvae-watermarked"."""
    keep_last: int = 0
    """runs: number of newest complete checkpoints to keep; 0: as in the run's own configuration."""
    keep_every: int = 0
    """runs: keep checkpoints at multiples of this many steps, in addition to those the run keeps for good."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.path}: kind {self.kind!r} must be one of {', '.join(KINDS)}")
        for key, kinds in ONLY_FOR.items():
            if getattr(self, key) and self.kind not in kinds:
                raise ValueError(f"{self.path}: {key} applies to kind {', '.join(kinds)}, not to {self.kind}")
        if self.keep_last < 0 or self.keep_every < 0 or self.max_gib < 0:
            raise ValueError(f"{self.path}: max_gib, keep_last and keep_every must not be negative")
        if any("/" in name or not name for name in self.names):
            raise ValueError(f"{self.path}: names must be patterns of file names, without folders")
        check_root_path(self.path)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of file names that may be deleted."""
        return self.names or NAMES.get(self.kind, ())

    @property
    def min_age_s(self) -> float:
        """Minimum time in seconds that something must have been untouched."""
        return 3600 * (self.min_age_hours if self.min_age_hours >= 0 else MIN_AGE_HOURS[self.kind])

    @property
    def partial_min_age_s(self) -> float:
        """The same for partial files: one hour at most, unless the kind is partial."""
        return min(self.min_age_s, 3600 * MIN_AGE_HOURS["partial"]) if self.kind != "partial" else self.min_age_s


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole settings file."""

    limits: Limits = field(default_factory=Limits)
    roots: tuple[Root, ...]

    def __post_init__(self) -> None:
        if not self.roots:
            raise ValueError("no root: give at least one [[root]] with kind and path")
        for number, root in enumerate(self.roots):
            for other in self.roots[:number]:
                if root.path.is_relative_to(other.path) or other.path.is_relative_to(root.path):
                    raise ValueError(
                        f"{root.path}: overlaps the root {other.path}; each file may belong to only one root"
                    )


def with_run(settings: Settings, run_dir: Path) -> Settings:
    """The settings plus this run directory as a root, unless it lies in a root of kind runs."""
    run_dir = run_dir.expanduser().absolute()
    if any(root.kind == "runs" and run_dir.is_relative_to(root.path) for root in settings.roots):
        return settings
    return dataclasses.replace(settings, roots=(*settings.roots, Root(kind="runs", path=run_dir)))


def with_live_runs(settings: Settings, run_dirs: Iterable[Path]) -> Settings:
    """The settings plus these run directories; one that cannot be a root is skipped and logged once."""
    for run_dir in run_dirs:
        try:
            settings = with_run(settings, run_dir)
        except ValueError as error:
            if str(error) not in _WARNED:
                _WARNED.add(str(error))
                LOGGER.warning("%s; this run is not watched", error)
    return settings


def default_settings() -> Settings:
    """Settings without a file: what echotts and its libraries write on this host, and nothing else.

    The shard cache, spools of runs in buckets, libtpu's logs and the Hub's cache, each if it is allowed as a root. Run
    directories are added by `with_run`.
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
    """The Hub's cache folder, resolved like huggingface_hub does but without its slow import."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen)
    home = os.environ.get("HF_HOME") or cache_root().parent / "huggingface"
    return Path(home).expanduser() / "hub"


def load_settings(path: Path) -> Settings:
    """Reads and validates the file. ValueError or FileNotFoundError names the file, the place and the remedy."""
    try:
        content = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    if unknown := content.keys() - {"limits", "root"}:
        raise ValueError(f"{path}: unknown key {min(unknown)!r}: known keys are limits and root")
    limits = check_type(content.get("limits", {}), f"{path}: [limits]", Limits)
    tables = check_type(content.get("root", []), f"{path}: [[root]]", list[dict[str, Any]])
    roots = tuple(_root(table, f"{path}: [[root]] {number}") for number, table in enumerate(tables, 1))
    try:
        return Settings(limits=limits, roots=roots)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_root_path(path: Path) -> None:
    """Raises ValueError for a forbidden root: a relative or system path, a home or its parents, or behind a symlink."""
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{path}: a root must be an absolute path without ..")
    real = Path(os.path.realpath(path))
    homes = [Path("/root"), Path("/home/any")]
    with contextlib.suppress(RuntimeError):  # no HOME and no entry in passwd
        homes += [Path.home(), Path(os.path.realpath(Path.home()))]
    for candidate in (path, real):
        if any(home.is_relative_to(candidate) for home in homes):
            raise ValueError(f"{path}: {candidate} must not be a root; give the folder inside it that may be cleaned")
        system = next((name for name in SYSTEM if candidate.is_relative_to(name)), None)
        if system and SHARED_MEMORY not in candidate.parents:
            raise ValueError(f"{path}: {system} is a system folder and must not be a root")
    if real != path:
        raise ValueError(f"{path}: is reached through a symlink; give the folder itself, {real}")


def _root(table: dict[str, Any], where: str) -> Root:
    if not {"kind", "path"} <= table.keys():
        raise ValueError(f"{where} needs kind and path")
    return check_type(table | {"path": Path(str(table["path"])).expanduser()}, where, Root)
