"""Run directories: finding them, their writers, and the checkpoints that may be deleted.

Always kept: the newest complete checkpoint and everything newer, the newest one verified by a restore (`verified.json`,
written by the trainer that resumed from it), the best one (`best.json`), the newest `keep_last`, and each multiple of
`keep_every`. If the run's configuration, which says what to keep, cannot be read, all checkpoints are kept.
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
    BEST,
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

PARTIAL_FOLDERS: tuple[Folder, ...] = ((), (CHECKPOINTS,), (SAMPLES,))


def run_folders(root: int) -> list[Folder]:
    """The run directories at, or directly below, an open folder."""
    if _is_run(root, "."):
        return [()]
    return [(name,) for name in sorted(os.listdir(root)) if _is_run(root, name)]


def is_written(root: int, run: Folder) -> bool:
    """Whether a trainer is writing to this run."""
    with opened(root, run) as here:
        return here is not None and is_leased(here, WRITER)


def newest_step(root: int, run: Folder) -> int:
    """The step of the newest complete checkpoint; 0 if there is none."""
    with opened(root, (*run, CHECKPOINTS)) as here:
        if here is None:
            return 0
        return max((step for step, name in _steps(here).items() if _is_whole(here, step, name)), default=0)


def run_partials(root: int, run: Folder, min_age_s: float, in_use: OpenFiles) -> Iterator[Found]:
    """Partial files and folders of a run without a live writer."""
    if is_written(root, run):
        return
    for folder in PARTIAL_FOLDERS:
        with opened(root, (*run, *folder)) as here:
            if here is not None:
                for found in partial_files(here, PARTIAL_NAMES, min_age_s, in_use, depth=1):
                    yield found._replace(folder=(*run, *folder))


def old_checkpoints(root: int, run: Folder, rule: Root, before: float) -> list[Found]:
    """Checkpoints that need not be kept and were written before the time `before`, in order of steps."""
    keep_last, keep_every = keep_policy(root, run, rule)
    folder = (*run, CHECKPOINTS)
    with opened(root, folder) as here:
        if here is None or keep_last < 1:
            return []
        steps = sorted(_steps(here).items())
        whole = [step for step, name in steps if _is_whole(here, step, name)]
        if not whole:
            return []
        kept = set(whole[-keep_last:]) | {noted_step(root, run, VERIFIED), noted_step(root, run, BEST)}
        kept |= {step for step, _ in steps if step >= whole[-1] or any(step % every == 0 for every in keep_every)}
        old = [
            (name, f"checkpoint beyond the newest {keep_last}" if step in whole else "incomplete checkpoint")
            for step, name in steps
            if step not in kept
        ]
        old += [(name, "unreadable checkpoint") for name in os.listdir(here) if BROKEN.fullmatch(name)]
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
    """(number of newest complete checkpoints to keep, multiples to keep); the first is 0 if unknown: keep all."""
    own = _read_json(root, (*run, CONFIG)).get("run")
    keep_last, keep_every = (own.get("keep_last"), own.get("keep_every")) if isinstance(own, dict) else (None, None)
    if not isinstance(keep_last, int) or not isinstance(keep_every, int):
        return 0, ()
    return rule.keep_last or keep_last, tuple(number for number in (rule.keep_every, keep_every) if number > 0)


def noted_step(root: int, run: Folder, file: str) -> int | None:
    """The step that the trainer recorded in a file: VERIFIED, last verified by a restore, or BEST."""
    step = _read_json(root, (*run, file)).get("step")
    return step if isinstance(step, int) else None


def _is_run(root: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        own = os.stat(name, dir_fd=root, follow_symlinks=False)
        inner = os.stat(f"{name}/{CHECKPOINTS}", dir_fd=root, follow_symlinks=False)
        return stat.S_ISDIR(own.st_mode) and stat.S_ISDIR(inner.st_mode)
    return False


def _steps(checkpoints: int) -> dict[int, str]:
    """Step -> folder name of all folders named like a checkpoint."""
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


def _read_json(root: int, file: Folder) -> dict[str, Any]:
    """The object in a JSON file below an open folder; empty if it cannot be read."""
    with opened(root, file[:-1]) as here:
        if here is None:
            return {}
        try:
            descriptor = os.open(file[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
            with open(descriptor, "rb") as opened_file:
                return load_json(opened_file.read(MAX_BYTES + 1), "/".join(file), dict[str, Any])
        except (OSError, ValueError):
            return {}
