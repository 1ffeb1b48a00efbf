"""Run directories: which are there, who writes them, which of their checkpoints may go.

Kept whatever happens: the newest whole checkpoint and all that is newer, the newest one that was read back whole
(`verified.json`, by the trainer that resumed from it), the newest `keep_last`, each multiple of `keep_every`.
Where the run's own configuration cannot be read, which says what to keep, all stay.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any

from echotts.disk.scan import Found, OpenFiles, partial_files, warn_once
from echotts.disk.settings import PARTIAL_NAMES, Root
from echotts.disk.tree import Entry, Folder, UnusualError, measure_folder, opened
from echotts.rundir.layout import (
    BROKEN,
    CHECKPOINT_METADATA,
    CHECKPOINT_PARTS,
    CHECKPOINTS,
    CONFIG,
    SAMPLES,
    STEP,
    VERIFIED,
    WRITER,
)
from echotts.rundir.leases import is_leased
from echotts.strict_json import MAX_BYTES, load_json

PARTIAL_PLACES: tuple[Folder, ...] = ((), (CHECKPOINTS,), (SAMPLES,))


def run_folders(root: int) -> list[Folder]:
    """The run directories at or right below an open folder."""
    if _is_run(root, "."):
        return [()]
    return [(name,) for name in sorted(os.listdir(root)) if _is_run(root, name)]


def is_written(root: int, run: Folder) -> bool:
    """Whether a trainer writes this run now."""
    with opened(root, run) as here:
        return here is not None and is_leased(here, WRITER)


def newest_step(root: int, run: Folder) -> int:
    """The step of the newest whole checkpoint; 0 where there is none."""
    with opened(root, (*run, CHECKPOINTS)) as here:
        if here is None:
            return 0
        return max((step for step, name in _steps(here).items() if _is_whole(here, step, name)), default=0)


def run_partials(root: int, run: Folder, min_age_s: float, in_use: OpenFiles) -> Iterator[Found]:
    """Half-written files and folders of a run that nobody writes."""
    if is_written(root, run):
        return
    for place in PARTIAL_PLACES:
        with opened(root, (*run, *place)) as here:
            if here is not None:
                for found in partial_files(here, PARTIAL_NAMES, min_age_s, in_use, depth=1):
                    yield found._replace(folder=(*run, *place))


def old_checkpoints(root: int, run: Folder, rule: Root, before: float) -> list[Found]:
    """The checkpoints of a run that are beyond what is kept and were written before then, the lowest step first."""
    keep_last, keep_every = keep_policy(root, run, rule)
    folder = (*run, CHECKPOINTS)
    with opened(root, folder) as here:
        if here is None or keep_last < 1:
            return []
        steps = sorted(_steps(here).items())
        whole = [step for step, name in steps if _is_whole(here, step, name)]
        if not whole:
            return []
        kept = set(whole[-keep_last:]) | {verified_step(root, run)}
        kept |= {step for step, _ in steps if step >= whole[-1] or any(step % every == 0 for every in keep_every)}
        old = [
            (name, f"checkpoint beyond the newest {keep_last}" if step in whole else "checkpoint that is not whole")
            for step, name in steps
            if step not in kept
        ]
        old += [(name, "checkpoint that could not be read") for name in os.listdir(here) if BROKEN.fullmatch(name)]
        found = []
        for name, reason in old:
            about = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISDIR(about.st_mode):
                entry = Entry((), name, about)
                try:
                    size_bytes, newest = measure_folder(here, entry)
                except (OSError, UnusualError) as error:
                    warn_once(here, entry, error)
                    continue
                if newest <= before:
                    found.append(Found(newest, folder, name, size_bytes, about.st_dev, about.st_ino, reason))
        return found


def keep_policy(root: int, run: Folder, rule: Root) -> tuple[int, tuple[int, ...]]:
    """(newest whole checkpoints that stay, multiples that stay); 0 of the first: the run does not say, so all do."""
    own = _read_json(root, (*run, CONFIG)).get("run")
    keep_last, keep_every = (own.get("keep_last"), own.get("keep_every")) if isinstance(own, dict) else (None, None)
    if not isinstance(keep_last, int) or not isinstance(keep_every, int):
        return 0, ()
    return rule.keep_last or keep_last, tuple(number for number in (rule.keep_every, keep_every) if number > 0)


def verified_step(root: int, run: Folder) -> int | None:
    """The step that the trainer noted last as read back whole."""
    step = _read_json(root, (*run, VERIFIED)).get("step")
    return step if isinstance(step, int) else None


def _is_run(root: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        own = os.stat(name, dir_fd=root, follow_symlinks=False)
        inner = os.stat(f"{name}/{CHECKPOINTS}", dir_fd=root, follow_symlinks=False)
        return stat.S_ISDIR(own.st_mode) and stat.S_ISDIR(inner.st_mode)
    return False


def _steps(checkpoints: int) -> dict[int, str]:
    """Step -> folder name, of all that have the name of a checkpoint."""
    return {int(found[1]): name for name in os.listdir(checkpoints) if (found := STEP.fullmatch(name))}


def _is_whole(checkpoints: int, step: int, name: str) -> bool:
    with opened(checkpoints, (name,)) as here:
        if here is None:
            return False
        try:
            parts = [os.stat(part, dir_fd=here, follow_symlinks=False) for part in CHECKPOINT_PARTS]
        except OSError:
            return False
        filled = all(stat.S_ISREG(part.st_mode) and part.st_size > 0 for part in parts)
        return filled and _read_json(here, tuple(CHECKPOINT_METADATA.split("/"))).get("step") == step


def _read_json(root: int, place: Folder) -> dict[str, Any]:
    """The object in a JSON file below an open folder; empty where there is none that can be read."""
    with opened(root, place[:-1]) as here:
        if here is None:
            return {}
        try:
            descriptor = os.open(place[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
            with open(descriptor, "rb") as file:
                return load_json(file.read(MAX_BYTES + 1), "/".join(place), dict[str, Any])
        except (OSError, ValueError):
            return {}
