"""Checkpoints of a run: parameters, EMA, optimizer, step, samples seen, stream state and configuration, as one unit.

Orbax writes them in the background into a temporary folder and commits by renaming: a folder named `step_00001500` is
a whole checkpoint or, after damage from outside, one that is passed over with a warning. In a bucket, where nothing can
be renamed at once, a step counts when COMMITTED is in it, which is written last. All of Orbax is in this file.

    step_00001500/{params,ema,opt_state}/   arrays (OCDBT)
    step_00001500/meta/metadata             JSON: format, step, samples_seen, stream, config, facts
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint._src.multihost import multihost  # how processes meet has no public setting

from echotts import buckets
from echotts.config import Config, RunConfig
from echotts.disk.leases import is_leased, lease
from echotts.disk.runs import note_verified
from echotts.disk.settings import load_settings
from echotts.disk.watchdog import make_room
from echotts.training.exchange import from_all
from echotts.training.room import any_process
from echotts.training.rundir import Place, read_whole

LOGGER = logging.getLogger(__name__)

FORMAT = 1
FOLDER = "checkpoints"
STEP_PREFIX, STEP_DIGITS = "step", 8
STEP_NAME = re.compile(rf"{STEP_PREFIX}_(\d{{{STEP_DIGITS},}})")
SYSTEM_REASON = re.compile(r"([^:]+) \[os_error_code=")  # the end of a long message of tensorstore
COMMITTED = "commit_success.txt"
ARRAYS = ("params", "ema", "opt_state")
SAVE_TIMEOUT_S = 1800
NO_ANSWER = re.compile(  # how tensorstore begins when it is not the data that are wrong
    "UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED|ABORTED|INTERNAL|UNKNOWN"
)
UNREADABLE = (ValueError, KeyError, OSError)  # what a damaged checkpoint raises; lack of memory is not among them

# Processes meet at the coordinator, which waits 300 s and names who is missing; a collective would wait forever.
multihost.flags.FLAGS.mark_as_parsed()
multihost.flags.FLAGS.experimental_orbax_use_distributed_barrier = True

# What may differ when a run resumes; everything else must be as it was. `run.seed` decides every random draw.
MAY_DIFFER = (
    "run.*",
    "optim.steps",
    "data.data",
    "data.heldout",
    "data.cache_dir",
    "data.cache_gb",
    "data.fetch_deadline_s",
    "model.remat",
    "model.attention",
)
MUST_AGREE = ("run.seed",)


class CheckpointError(OSError):
    """A checkpoint could not be written or read."""


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says beside its arrays; JSON-ready."""

    step: int
    samples_seen: int
    stream: dict[str, Any]
    config: dict[str, Any]
    facts: dict[str, Any]  # codec, tokenizer, silence: what an export tells inference
    format: int = FORMAT
    frames_seen: int = 0  # frames of speech trained on; checkpoints of older programs do not say
    guard: dict[str, Any] = dataclasses.field(default_factory=dict)  # which steps counted; nor do they say this


class Checkpoints:
    """The checkpoints of one run directory: when to save, what to keep, where to resume.

    In a bucket nobody leases them, and there is no end of the room.
    """

    def __init__(self, run_dir: Place, run: RunConfig):
        self.directory = run_dir / FOLDER
        self._on_disk = self.directory.absolute() if isinstance(self.directory, Path) else None
        self._run = run
        self._disk = load_settings(Path(run.disk_config).expanduser()) if run.disk_config else None
        self._last_save_s = time.monotonic()
        for name in ("absl", "asyncio"):  # where orbax tells of each file, and again of each failure that it raises
            logging.getLogger(name).setLevel(logging.CRITICAL)
        keep: list[policies.PreservationPolicy] = [policies.LatestN(run.keep_last)]
        if self._on_disk:
            keep.append(Leased(self._on_disk))
        if run.keep_every:
            keep.append(policies.EveryNSteps(run.keep_every))
        self._manager = _Manager(
            self._on_disk or self.directory,
            options=ocp.CheckpointManagerOptions(
                step_prefix=STEP_PREFIX,
                step_format_fixed_length=STEP_DIGITS,
                cleanup_tmp_directories=True,
                preservation_policy=policies.AnyPreservationPolicy(keep),
                async_options=ocp.options.AsyncOptions(timeout_secs=SAVE_TIMEOUT_S),
            ),
        )

    def due(self, step: int) -> bool:
        """Whether the state after `step` steps is to be saved: by count, or because the last save is long ago."""
        by_count = self._run.save_every_steps > 0 and step % self._run.save_every_steps == 0
        minutes = (time.monotonic() - self._last_save_s) / 60
        return by_count or (self._run.save_every_minutes > 0 and minutes >= self._run.save_every_minutes)

    def save(self, arrays: Mapping[str, Any], meta: Meta) -> float:
        """Copies the arrays off the devices and returns the seconds that took; writing goes on behind.

        An error of the save before comes out here. A step that is there already is left as it is.
        """
        began = time.monotonic()
        self._last_save_s = began
        if meta.step in self._manager.all_steps():
            return 0.0
        if self._disk is not None and self._on_disk and jax.process_index() == 0:
            make_room(self._disk, self._on_disk, _bytes(arrays))
        self._check_room(arrays)
        items = {name: ocp.args.StandardSave(arrays[name]) for name in ARRAYS}
        args = ocp.args.Composite(meta=ocp.args.JsonSave(dataclasses.asdict(meta)), **items)
        try:
            self._manager.save(meta.step, args=args, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from error
        return time.monotonic() - began

    def check(self) -> None:
        """Raises CheckpointError if a save in the background has failed."""
        try:
            self._manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Returns when the last save is committed; raises CheckpointError if it failed."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from error

    def restore(
        self, abstract: Mapping[str, Any], config: dict[str, Any], before: int | None = None
    ) -> tuple[dict[str, Any], Meta] | None:
        """The newest checkpoint that is whole, on today's shardings, or None in a new run directory.

        `before` is a step: only checkpoints of earlier ones are looked at. `abstract` holds a tree of
        jax.ShapeDtypeStruct with shardings for each of ARRAYS. A damaged checkpoint is renamed to `<name>.broken` and
        said. Raises ValueError where the run was made with another configuration, and CheckpointError where the next
        checkpoint would not fit on the disk.
        """
        self._check_room(abstract)
        found = [folder for folder in step_folders(self.directory) if before is None or step_of(folder) < before]
        broken: list[tuple[Place, Exception]] = []
        for folder in found:
            failed: Exception | None = None
            try:
                with reading(folder):
                    meta = read_meta(folder)
                    check_config(meta.config, config, folder)
                    arrays = {name: read_arrays(folder, name, abstract[name]) for name in ARRAYS}
            except ConfigDiffersError:
                raise
            except UNREADABLE as error:
                if not _is_damage(folder, error):
                    raise CheckpointError(
                        f"{folder}: cannot be read now: {first_line(error)}; start the same command again"
                    ) from error
                failed = error
                LOGGER.warning("%s: cannot be read, trying the one before (%s)", folder, first_line(error))
            if any_process(failed is not None):
                broken.append((folder, failed or CheckpointError("another process cannot read it")))
                continue
            if self._on_disk and jax.process_index() == 0:
                note_verified(self._on_disk.parent, meta.step)  # pyright: ignore[reportPossiblyUnboundVariable]
            self._set_aside(broken)
            return arrays, meta  # pyright: ignore[reportPossiblyUnboundVariable]
        if broken:
            folder, error = broken[0]
            raise CheckpointError(
                f"{self.directory}: none of {len(broken)} checkpoints can be read, the newest because of: "
                f"{first_line(error)}; remove the folder to start over"
            ) from error
        return None

    def has_any(self) -> bool:
        """Whether there is a committed checkpoint, readable or not."""
        return bool(step_folders(self.directory))

    def close(self) -> None:
        """Waits for the last save. Call `wait` first where its failure matters."""
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
        """Whether there is room for a checkpoint of these arrays."""
        return self._on_disk is None or shutil.disk_usage(self._on_disk).free >= _bytes(arrays)

    def _check_room(self, arrays: Mapping[str, Any]) -> None:
        if self._on_disk is None:
            return
        needed = _bytes(arrays)
        free = shutil.disk_usage(self._on_disk).free
        if free < needed:
            raise CheckpointError(
                f"{self.directory}: a checkpoint takes {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; "
                f"{self._last_whole()}; make room and start the same command again"
            )

    def _last_whole(self) -> str:
        try:
            whole = step_folders(self.directory)
        except OSError:  # a bucket that cannot be asked, which is why this is wanted
            return "the ones before are as they were"
        return f"the last whole one is {whole[0].name}" if whole else "there is no earlier one"

    def _set_aside(self, broken: list[tuple[Place, Exception]]) -> None:
        """Renames what cannot be read, on one process; the others wait for it."""
        for folder, _ in broken if jax.process_index() == 0 else ():
            target = folder.with_name(f"{folder.name}.broken")
            if not isinstance(folder, Path):
                buckets.set_aside(str(folder), str(target), COMMITTED)
                continue
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
        if broken:
            from_all("set aside", True)
            self._manager.reload()

    def _failure(self, error: Exception) -> CheckpointError:
        remedy = "start the same command again"
        room = ""
        if self._on_disk:  # in a bucket the next start clears away what was not committed
            for part in self._on_disk.glob(f"{STEP_PREFIX}_*orbax-checkpoint-tmp*"):
                shutil.rmtree(part, ignore_errors=True)
            room = f"; {shutil.disk_usage(self._on_disk).free / 1e6:.1f} MB free"
            remedy = f"make room and {remedy}"
        return CheckpointError(
            f"{self.directory}: a checkpoint could not be written ({first_line(error)}{room}); "
            f"{self._last_whole()}; {remedy}"
        )


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which does not ask whether the machine is taken away: the loop does (runtime.StopSignal).

    Its question, with a number of its own and from a thread, would move the point on which the processes agree.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


@dataclass(frozen=True)
class Leased(policies.PreservationPolicy):
    """Keeps what somebody reads just now; a later save looks again."""

    directory: Path

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each of Orbax's checkpoint infos."""
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = [f"{STEP_PREFIX}_{info.step:0{STEP_DIGITS}d}" for info in checkpoints]
            return [is_leased(folder, name) for name in names]
        finally:
            os.close(folder)


class ConfigDiffersError(ValueError):
    """A run is resumed with a configuration it was not made with."""


def step_folders(directory: Place) -> list[Place]:
    """The committed checkpoints below a `checkpoints` folder, newest first. OSError where a bucket does not answer."""
    if isinstance(directory, Path):
        names = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    else:
        below = [name.split("/") for name in buckets.names_below(str(directory))]
        names = [parts[0] for parts in below if parts[1:] == [COMMITTED]]
    return sorted((directory / name for name in names if STEP_NAME.fullmatch(name)), key=step_of, reverse=True)


def step_of(folder: Place) -> int:
    """The step of a committed checkpoint's folder."""
    return int(folder.name.rsplit("_", 1)[1])


def reading(folder: Place) -> contextlib.AbstractContextManager[None]:
    """Within it nobody deletes the checkpoint; in a bucket nobody can be kept from it."""
    return lease(folder) if isinstance(folder, Path) else contextlib.nullcontext()


def read_meta(folder: Place) -> Meta:
    """What the checkpoint in this step folder says about itself."""
    path = folder / "meta" / "metadata"
    text = read_whole(path)
    if text is None:
        raise FileNotFoundError(f"{path}: no such file")
    fields = json.loads(text)
    if fields.get("format") != FORMAT:
        raise ValueError(f"{folder}: checkpoint format {fields.get('format')}, this program reads {FORMAT}")
    return Meta(**fields)


def read_arrays(folder: Place, name: str, abstract: Any) -> Any:
    """One of ARRAYS, restored into a tree of jax.ShapeDtypeStruct; a leaf's sharding says where it goes."""
    path = folder / name
    with ocp.StandardCheckpointer() as reader, buckets.plainly(folder):
        try:
            arrays = reader.restore(path.absolute() if isinstance(path, Path) else path, abstract)
        except Exception as error:
            if type(error) is not Exception:  # orbax reports a cut file as an Exception of no class
                raise
            raise ValueError(f"{folder / name}: {first_line(error)}") from error
    for path, (found, wanted) in _pairs(arrays, abstract):
        if found.shape != wanted.shape:
            raise ValueError(f"{folder}: {path} has shape {found.shape}, the model needs {wanted.shape}")
    return arrays


def differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """`section.key: saved value -> given value`, for each key that differs."""
    before, now = _flat(saved), _flat(given)
    missing = "(absent)"
    return [
        f"{key}: {before.get(key, missing)!r} -> {now.get(key, missing)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, missing) != now.get(key, missing)
    ]


def check_config(saved: Mapping[str, Any], given: Mapping[str, Any], folder: Place) -> None:
    """Raises ConfigDiffersError, naming each difference that a resumed run may not have; logs those it may."""
    lines = differences(_completed(saved), given)
    refused = [line for line in lines if not _may_differ(line.split(":", 1)[0])]
    if refused:
        raise ConfigDiffersError(
            f"{folder}: made with another configuration: {'; '.join(refused)}; "
            "give what it was made with, or another --run_dir (with --init_from to start from its weights)"
        )
    for line in lines:
        if not line.startswith("run."):
            LOGGER.warning("resuming with another %s", line)


def first_line(error: BaseException) -> str:
    """What an error says first, cut to a readable length; of an error of the system below, the system's own words."""
    system = SYSTEM_REASON.search(str(error))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return system[1].strip() if system else lines[0][:300]


def _is_damage(folder: Place, error: Exception) -> bool:
    """Whether the checkpoint itself cannot be read, rather than the bucket it is in."""
    if isinstance(folder, Path) or isinstance(error, FileNotFoundError):
        return True
    return not isinstance(error, OSError) and not NO_ANSWER.search(str(error))


def _bytes(arrays: Mapping[str, Any]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(dict(arrays)))


def _may_differ(key: str) -> bool:
    if key in MUST_AGREE:
        return False
    return any(key == known or (known.endswith("*") and key.startswith(known[:-1])) for known in MAY_DIFFER)


def _completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with keys that its program did not know yet, at the defaults that stand for what it did."""
    known = {field.name: field.type for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type)}
    completed: dict[str, Any] = dict(saved)
    for name, section in known.items():
        defaults = {key.name: key.default for key in dataclasses.fields(section) if key.default is not MISSING}
        completed[name] = defaults | dict(saved.get(name, {}))
    return completed


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sections flattened to dotted keys, after a round trip through JSON so that tuples and lists compare equal."""
    flat: dict[str, Any] = {}

    def visit(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                visit(value, f"{path}.{name}" if path else name)
        else:
            flat[path] = node

    visit(json.loads(json.dumps(config)), "")
    return flat


def _pairs(arrays: Any, abstract: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    wanted = jax.tree.leaves(abstract)
    for (path, found), shape in zip(leaves, wanted, strict=True):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), (found, shape)
