"""Checkpoints of a run: parameters, EMA, optimizer, step, samples seen, stream state and configuration, as one unit.

Orbax writes them in the background to a temporary folder and commits by renaming. Unreadable checkpoints are skipped
with a warning. Orbax is used only in this file and in contents.py.
"""

import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint._src.multihost import multihost  # there is no public option for the barrier

from echotts import gcs
from echotts.checkpoint.agreement import ConfigDiffersError, check_config
from echotts.checkpoint.contents import (
    UNREADABLE,
    CheckpointError,
    Digests,
    Meta,
    first_line,
    is_damage,
    read_arrays,
    read_digests,
    read_meta,
    reading,
    step_folders,
    step_of,
)
from echotts.checkpoint.digests import global_digests, json_digest
from echotts.config import RunConfig
from echotts.multihost.messages import agree_on, all_gather, any_process
from echotts.multihost.runtime import Announcements
from echotts.rundir.layout import (
    BROKEN_SUFFIX,
    CHECKPOINT_ARRAYS,
    CHECKPOINTS,
    COMMITTED,
    STEP_DIGITS,
    STEP_PREFIX,
    note_verified,
    step_name,
)
from echotts.rundir.leases import is_leased
from echotts.rundir.location import RunPath

LOGGER = logging.getLogger(__name__)

# Use the coordinator's barrier, which times out after 300 s and names the missing process; a collective waits forever.
multihost.flags.FLAGS.mark_as_parsed()
multihost.flags.FLAGS.experimental_orbax_use_distributed_barrier = True

SAVE_TIMEOUT_S = 1800.0
CLEARING_ROUNDS = 30  # rounds of 0.1 s to remove the remains of a failed checkpoint
TRY_EARLIER = "%s: cannot be read, trying the previous one (%s)"

Restored = tuple[dict[str, Any], Meta, Digests | None]

MakeRoom = Callable[[Path, int], None]
"""(folder, bytes needed): deletes files by the watchdog's rules until that many bytes are free."""


class Checkpoints:
    """The checkpoints of one run directory: when to save, what to keep, what to restore.

    Checkpoints in a bucket are not leased, and free space is not checked there.
    """

    def __init__(self, run_dir: RunPath, run: RunConfig, make_room: MakeRoom | None = None):
        self.directory = run_dir / CHECKPOINTS
        self._on_disk = self.directory.absolute() if isinstance(self.directory, Path) else None
        self._run = run
        self._make_room = make_room
        self.best: int | None = None  # a step to keep regardless of its age
        self._last_save_s = time.monotonic()
        self._clock = Announcements("save")
        for name in ("absl", "asyncio"):  # orbax logs each file here, and each error that it also raises
            logging.getLogger(name).setLevel(logging.CRITICAL)
        keep: list[policies.PreservationPolicy] = [policies.LatestN(run.keep_last)]
        if self._on_disk:
            keep.append(Leased(self._on_disk))
        keep.append(Chosen(self))
        if run.keep_every:
            keep.append(policies.EveryNSteps(run.keep_every))
        self._manager = _Manager(
            self._on_disk or self.directory,
            options=ocp.CheckpointManagerOptions(
                step_prefix=STEP_PREFIX,
                step_format_fixed_length=STEP_DIGITS,
                cleanup_tmp_directories=True,
                preservation_policy=policies.AnyPreservationPolicy(keep),
                async_options=ocp.options.AsyncOptions(timeout_secs=round(SAVE_TIMEOUT_S)),
            ),
        )

    def due(self, step: int) -> bool:
        """Whether to save the state after `step` steps: by step count, or by time since the last save.

        All processes call it after each step. The clock is that of process 0.
        """
        by_count = self._run.save_every_steps > 0 and step % self._run.save_every_steps == 0
        return by_count or (self._run.save_every_minutes > 0 and self._clock.due(step, self._is_long_ago))

    def save(self, arrays: Mapping[str, Any], meta: Meta) -> float:
        """Copies the arrays off the devices and returns the seconds that took; files are written in the background.

        Raises the error of the previous save if it failed. A step that is already saved is not saved again.
        """
        began = time.monotonic()
        self._last_save_s = began
        if agree_on("save", lambda: self._is_there(meta.step, arrays), "free space for a checkpoint", SAVE_TIMEOUT_S):
            return 0.0
        about = meta.to_dict()
        digests = Digests(json_digest(about), self._digests(arrays))
        items = {name: ocp.args.StandardSave(arrays[name]) for name in CHECKPOINT_ARRAYS}
        items |= {"meta": ocp.args.JsonSave(about), "digests": ocp.args.JsonSave(dataclasses.asdict(digests))}
        try:
            self._manager.save(meta.step, args=ocp.args.Composite(**items), force=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from error
        return time.monotonic() - began

    def check(self) -> None:
        """Raises CheckpointError if a background save has failed."""
        try:
            self._manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Waits until the last save is committed; raises CheckpointError if it failed."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from error

    def restore(
        self, abstract: Mapping[str, Any], config: dict[str, Any], before: int | None = None
    ) -> tuple[dict[str, Any], Meta] | None:
        """Restores the newest intact checkpoint with the current shardings, or returns None in a new run directory.

        With `before`, only checkpoints of earlier steps are considered. `abstract` holds a tree of
        jax.ShapeDtypeStruct with shardings for each of CHECKPOINT_ARRAYS. A damaged checkpoint is renamed to
        `<name>.broken`, with a warning. Raises ValueError if the run has another configuration, and CheckpointError if
        the next checkpoint would not fit on the disk.
        """
        folders = agree_on("restore", lambda: self._candidates(abstract, before), "list the checkpoints")
        broken: list[tuple[RunPath, Exception]] = []
        for folder in (self.directory / name for name in folders):
            read = self._read(folder, abstract, config)
            error = read if isinstance(read, Exception) else None
            if any_process(error is not None):
                broken.append((folder, error or CheckpointError("another process cannot read it")))
                continue
            arrays, meta, digests = cast(Restored, read)
            if what := digests.changed_in(self._digests(arrays)) if digests else "":
                LOGGER.warning(TRY_EARLIER, folder, what)
                broken.append((folder, ValueError(what)))
                del read, arrays  # memory may not suffice for two
                continue
            if digests and self._on_disk and jax.process_index() == 0:
                note_verified(self._on_disk.parent, meta.step)
            self._set_aside(broken)
            return arrays, meta
        if broken:
            folder, error = broken[0]
            raise CheckpointError(
                f"{self.directory}: none of {len(broken)} checkpoints can be read, the newest because of: "
                f"{first_line(error)}; remove the folder to start over"
            ) from error
        return None

    def _candidates(self, abstract: Mapping[str, Any], before: int | None) -> list[str]:
        """The names of the checkpoints to try, newest first. CheckpointError if the next one would not fit."""
        self._check_room(abstract)
        found = step_folders(self.directory)
        return [folder.name for folder in found if before is None or step_of(folder) < before]

    def _is_there(self, step: int, arrays: Mapping[str, Any]) -> bool:
        """Whether this step is already saved; if not, ensures that there is space for it, or raises CheckpointError."""
        if step in self._manager.all_steps():
            return True
        if self._make_room is not None and self._on_disk:
            self._make_room(self._on_disk, _bytes(arrays))
        self._check_room(arrays)
        return False

    def _digests(self, arrays: Mapping[str, Any]) -> dict[str, dict[str, str]]:
        return {name: global_digests(arrays[name]) for name in CHECKPOINT_ARRAYS}

    def _is_long_ago(self) -> bool:
        return (time.monotonic() - self._last_save_s) / 60 >= self._run.save_every_minutes

    def _read(self, folder: RunPath, abstract: Mapping[str, Any], config: dict[str, Any]) -> "Restored | Exception":
        """A checkpoint, or the error if it is damaged; raises errors that are not the checkpoint's fault."""
        try:
            with reading(folder):
                meta = read_meta(folder)
                check_config(meta.config, config, folder)
                arrays = {name: read_arrays(folder, name, abstract[name]) for name in CHECKPOINT_ARRAYS}
                return arrays, meta, read_digests(folder)
        except ConfigDiffersError:
            raise
        except UNREADABLE as error:
            if not is_damage(folder, error):
                raise CheckpointError(
                    f"{folder}: cannot be read at the moment: {first_line(error)}; repeat the command"
                ) from error
            LOGGER.warning(TRY_EARLIER, folder, first_line(error))
            return error

    def has_any(self) -> bool:
        """Whether there is a committed checkpoint, readable or not."""
        return agree_on("any checkpoint", lambda: bool(step_folders(self.directory)), "list the checkpoints")

    def close(self) -> None:
        """Waits for the last save and ignores its errors; call `wait` first if they matter."""
        try:
            self._manager.close()
        except (OSError, ValueError, RuntimeError) as error:
            LOGGER.debug("closing after a failed save: %s", first_line(error))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fits(self, arrays: Mapping[str, Any]) -> bool:
        """Whether there is enough free space for a checkpoint of these arrays."""
        return self._on_disk is None or shutil.disk_usage(self._on_disk).free >= _bytes(arrays)

    def _check_room(self, arrays: Mapping[str, Any]) -> None:
        if self._on_disk is None:
            return
        needed = _bytes(arrays)
        free = shutil.disk_usage(self._on_disk).free
        if free < needed:
            raise CheckpointError(
                f"{self.directory}: a checkpoint takes {needed / 1e6:.1f} MB, but {free / 1e6:.1f} MB are free; "
                f"{self._last_whole()}; free some space and repeat the command"
            )

    def _last_whole(self) -> str:
        try:
            whole = step_folders(self.directory)
        except OSError:  # the bucket does not answer, which may be the error being reported
            return "earlier checkpoints are unchanged"
        return f"the last complete one is {whole[0].name}" if whole else "there is no earlier one"

    def _set_aside(self, broken: list[tuple[RunPath, Exception]]) -> None:
        """Renames unreadable checkpoints in one process; the others wait for it."""
        for folder, _ in broken if jax.process_index() == 0 else ():
            target = folder.with_name(folder.name + BROKEN_SUFFIX)
            if not isinstance(folder, Path):
                gcs.set_aside(str(folder), str(target), COMMITTED)
                continue
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
        if broken:
            all_gather("set aside", True)
            self._manager.reload()

    def _failure(self, error: Exception) -> CheckpointError:
        remedy = "repeat the command"
        room = ""
        if self._on_disk:  # in a bucket the next start removes what was not committed
            for _ in range(CLEARING_ROUNDS):  # threads writing other parts may still be running
                for part in (parts := list(self._on_disk.glob(f"{STEP_PREFIX}_*orbax-checkpoint-tmp*"))):
                    shutil.rmtree(part, ignore_errors=True)
                if not parts:
                    break
                time.sleep(0.1)
            room = f"; {shutil.disk_usage(self._on_disk).free / 1e6:.1f} MB free"
            remedy = f"free some space and {remedy}"
        return CheckpointError(
            f"{self.directory}: a checkpoint could not be written ({first_line(error)}{room}); "
            f"{self._last_whole()}; {remedy}"
        )


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its check for preemption, which the training loop does (runtime.StopSignal).

    Its check, from a thread and with a counter of its own, would shift the step at which the processes agree to stop.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


@dataclass(frozen=True)
class Leased(policies.PreservationPolicy):
    """Keeps checkpoints that are being read; a later save checks again."""

    directory: Path

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One value for each of Orbax's checkpoint infos."""
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = [step_name(info.step) for info in checkpoints]
            return [is_leased(folder, name) for name in names]
        finally:
            os.close(folder)


@dataclass(frozen=True)
class Chosen(policies.PreservationPolicy):
    """Keeps the best checkpoint."""

    checkpoints: Checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One value for each of Orbax's checkpoint infos."""
        return [info.step == self.checkpoints.best for info in checkpoints]


def _bytes(arrays: Mapping[str, Any]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(dict(arrays)))
