"""The plan of a preparation: its settings, and the files by which an interrupted one is resumed or refused."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echotts.data.prepare.recordings import Recording
from echotts.files import write_json
from echotts.latents import LatentCodec
from echotts.strict_json import load_json

logger = logging.getLogger(__name__)

PLAN_VERSION = 1
WORK_NAME = ".prepare"
REPORT_NAME = "prepare.json"
HELDOUT_NAME = "heldout"
MAX_REPORT_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How recordings become samples. Durations are in seconds."""

    seed: int = 0
    speaker: str | None = None
    language: str | None = None
    min_s: float = 0.5
    max_s: float = 30.72
    loudness_lufs: float = -16.0
    shard_samples: int = 1000
    heldout_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_s < self.max_s:
            raise ValueError(f"min_s {self.min_s:g} must be at least 0 and below max_s {self.max_s:g}")
        if self.shard_samples < 1:
            raise ValueError(f"shard_samples {self.shard_samples} must be at least 1")
        if not 0 <= self.heldout_share < 1:
            raise ValueError(f"heldout_share {self.heldout_share:g} must be from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Result of a preparation: `samples` to train on, and `heldout` in the second dataset, if requested."""

    samples: int
    hours: float
    shards: int
    with_reference: int
    rejected: dict[str, int]
    heldout: int = 0


def plan_of(recordings: Sequence[Recording], codec: LatentCodec, settings: Settings) -> dict[str, Any]:
    """Everything that determines the result."""
    decided = dataclasses.asdict(settings)
    if not settings.heldout_share:
        del decided["heldout_share"]  # plans of older versions do not have it
    listed = hashlib.sha256()
    for recording in recordings:
        listed.update(json.dumps([recording.key, recording.origin, recording.meta], sort_keys=True).encode())
    return {
        "version": PLAN_VERSION,
        "recordings": len(recordings),
        "recordings_sha256": listed.hexdigest(),
        "codec": codec.codec_id,
        "codec_weights": codec.weights_hash,
    } | decided


def begin(output: Path, plan: Mapping[str, Any]) -> None:
    """Creates the work folder, or checks that an existing one has the same plan."""
    work = output / WORK_NAME
    saved = work / "plan.json"
    if saved.exists():
        _check_same(output, read_report(saved), plan, "was started")
        return
    if output.is_dir() and any(path.suffix == ".tar" for path in output.iterdir()):
        raise ValueError(f"{output}: has shards that this command did not make: choose another folder")
    work.mkdir(parents=True, exist_ok=True)
    write_json(saved, plan)


def finished(output: Path, plan: Mapping[str, Any]) -> Summary:
    """The summary of a complete dataset, if it has the same plan."""
    report = output / REPORT_NAME
    if not report.exists():
        raise ValueError(f"{output}: has a dataset that this command did not make: choose another folder")
    saved = read_report(report)
    _check_same(output, saved["plan"], plan, "was made")
    logger.info("%s: already complete", output)
    return Summary(**saved["summary"])


def _check_same(output: Path, saved: Mapping[str, Any], plan: Mapping[str, Any], when: str) -> None:
    different = [
        f"{name} is {saved.get(name)!r} there, {value!r} here"
        for name, value in plan.items()
        if saved.get(name) != value
    ]
    if different:
        raise ValueError(
            f"{output}: {when} with other settings: {'; '.join(different)}: use those, or choose another folder"
        )


@contextlib.contextmanager
def alone(work: Path) -> Iterator[None]:
    """Excludes a second process from this folder, and removes partial files of a killed one."""
    with (work / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{work.parent}: another process is preparing this folder: wait for it or stop it") from None
        for folder in (work, work.parent, work.parent / HELDOUT_NAME):
            for leftover in folder.glob(".*.partial"):
                leftover.unlink()
        yield


def read_report(path: Path) -> Any:
    return load_json(path.read_bytes(), path, max_bytes=MAX_REPORT_BYTES)
