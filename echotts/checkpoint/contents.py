"""The contents of a run's `checkpoints` folder, and how they are read.

A folder named `step_00001500` is a complete checkpoint or, after external damage, an unreadable one. In a bucket, where
folders cannot be renamed atomically, a step is valid if it contains COMMITTED, which is written last.

    step_00001500/{params,ema,opt_state}/   arrays (OCDBT)
    step_00001500/meta/metadata             JSON: format, step, samples_seen, stream, config, facts
    step_00001500/digests/metadata          JSON: a digest of each array, and of meta/metadata
"""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax

from echotts import gcs
from echotts.checkpoint.digests import json_digest
from echotts.checkpoint.facts import Facts
from echotts.rundir.layout import CHECKPOINT_DIGESTS, CHECKPOINT_METADATA, COMMITTED, STEP
from echotts.rundir.leases import lease
from echotts.rundir.location import RunPath, read_whole
from echotts.strict_json import check_type, load_json

LOGGER = logging.getLogger(__name__)

Value = TypeVar("Value")

FORMAT = 1
MAX_META_BYTES = 1 << 28  # the stream state grows with its pools
SYSTEM_REASON = re.compile(r"([^:]+) \[os_error_code=")  # near the end of a long tensorstore message
NO_ANSWER = re.compile(  # tensorstore errors that are not about damaged data
    "UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED|ABORTED|INTERNAL|UNKNOWN"
)
UNREADABLE = (ValueError, KeyError, OSError)  # raised for damaged checkpoints; excludes MemoryError


class CheckpointError(OSError):
    """A checkpoint could not be written or read."""


@dataclass(frozen=True)
class Meta:
    """Everything in a checkpoint except its arrays."""

    step: int
    samples_seen: int
    stream: dict[str, Any]
    config: dict[str, Any]
    facts: Facts = dataclasses.field(default_factory=Facts)  # a codec training has none
    format: int = FORMAT
    frames_seen: int = 0  # frames of speech trained on; missing in older checkpoints
    guard: dict[str, Any] = dataclasses.field(default_factory=dict)  # state of the guard; missing in older checkpoints
    best: dict[str, Any] = dataclasses.field(default_factory=dict)  # state of best.Best, if the run looks for the best

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable, as `read_meta` expects it."""
        return dataclasses.asdict(self) | {"facts": self.facts.to_dict()}


@dataclass(frozen=True)
class Digests:
    """Digests that detect changes of a checkpoint: of meta/metadata, and of each array by item and path."""

    meta: str
    arrays: dict[str, dict[str, str]]

    def changed_in(self, found: Mapping[str, Mapping[str, str]]) -> str:
        """The arrays whose digests differ from those saved, as text; empty if none does."""
        different = []
        for item, now in found.items():
            before = self.arrays.get(item, {})
            paths = sorted(before.keys() | now.keys())
            different += [f"{item}/{path}" for path in paths if before.get(path) != now.get(path)]
        some = ", ".join(different[:3])
        return f"{some} changed since they were saved ({len(different)} arrays in total)" if different else ""


def step_folders(directory: RunPath) -> list[RunPath]:
    """The committed checkpoints in a `checkpoints` folder, newest first. OSError if a bucket does not answer."""
    if isinstance(directory, Path):
        names = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    else:
        below = [name.split("/") for name in gcs.names_below(str(directory))]
        names = [parts[0] for parts in below if parts[1:] == [COMMITTED]]
    return sorted((directory / name for name in names if STEP.fullmatch(name)), key=step_of, reverse=True)


def step_of(folder: RunPath) -> int:
    """The step of a checkpoint folder."""
    return int(folder.name.rsplit("_", 1)[1])


def reading(folder: RunPath) -> contextlib.AbstractContextManager[None]:
    """Prevents deletion of the checkpoint by a watchdog; has no effect in a bucket."""
    return lease(folder) if isinstance(folder, Path) else contextlib.nullcontext()


def newest_readable(
    path: RunPath, folders: Sequence[RunPath], read: Callable[[RunPath], Value], fatal: tuple[type[Exception], ...] = ()
) -> Value:
    """What `read` returns for the first of the checkpoints that can be read; the others are logged.

    Errors in `fatal` are raised at once. CheckpointError, which names `path`, if no checkpoint can be read.
    """
    for folder in folders:
        try:
            with reading(folder):
                return read(folder)
        except fatal:
            raise
        except UNREADABLE as error:
            LOGGER.warning("%s: cannot be read (%s)", folder, first_line(error))
    raise CheckpointError(f"{path}: none of the checkpoints can be read; the newest is {folders[0].name}")


def read_meta(folder: RunPath) -> Meta:
    """Reads a checkpoint's metadata. ValueError if it is not what was saved."""
    path = folder / CHECKPOINT_METADATA
    text = read_whole(path)
    if text is None:
        raise FileNotFoundError(f"{path}: no such file")
    fields = load_json(text, str(path), max_bytes=MAX_META_BYTES)
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        found = fields.get("format") if isinstance(fields, dict) else f"a {type(fields).__name__}"
        raise ValueError(f"{folder}: checkpoint format {found}, but this version reads {FORMAT}")
    meta = check_type(fields, str(path), Meta)
    if meta.step != step_of(folder):
        raise ValueError(f"{path}: has step {meta.step}")
    digests = read_digests(folder)
    if digests is not None and digests.meta != json_digest(fields):
        raise ValueError(f"{path}: changed since it was saved")
    return meta


def read_digests(folder: RunPath) -> Digests | None:
    """The digests saved with a checkpoint; None if an older version saved it without."""
    path = folder / CHECKPOINT_DIGESTS
    text = read_whole(path)
    return None if text is None else load_json(text, str(path), Digests)


def read_arrays(folder: RunPath, name: str, abstract: Any) -> Any:
    """One of CHECKPOINT_ARRAYS, restored into a tree of jax.ShapeDtypeStruct with the shardings of its leaves."""
    path = folder / name
    with _reader() as reader, gcs.plain_errors(folder):
        try:
            arrays = reader.restore(path.absolute() if isinstance(path, Path) else path, abstract)
        except Exception as error:
            # orbax raises a bare Exception for a truncated file, and other errors for wrong metadata
            if type(error) is not Exception and not isinstance(error, AttributeError | TypeError | AssertionError):
                raise
            raise ValueError(f"{folder / name}: {first_line(error)}") from error
    for path, (found, wanted) in _pairs(arrays, abstract):
        if found.shape != wanted.shape:
            raise ValueError(f"{folder}: {path} has shape {found.shape}, the model needs {wanted.shape}")
    return arrays


def stored_shapes(folder: RunPath, name: str) -> Any:
    """The stored tree of one of CHECKPOINT_ARRAYS in plain containers; leaves have shape and dtype."""
    path = folder / name
    with _reader() as reader, gcs.plain_errors(folder):
        found: Any = reader.metadata(path.absolute() if isinstance(path, Path) else path)
    return found.item_metadata.tree


def _reader() -> Any:
    import orbax.checkpoint as ocp  # takes a second, which a model from a file does not need

    return ocp.StandardCheckpointer()


def first_line(error: BaseException) -> str:
    """The first line of an error message, shortened; for a system error, the system's reason."""
    system = SYSTEM_REASON.search(str(error))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return system[1].strip() if system else lines[0][:300]


def is_damage(folder: RunPath, error: Exception) -> bool:
    """Whether the checkpoint itself is damaged, rather than its bucket unreachable."""
    if isinstance(folder, Path) or isinstance(error, FileNotFoundError):
        return True
    return not isinstance(error, OSError) and not NO_ANSWER.search(str(error))


def _pairs(arrays: Any, abstract: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    wanted = jax.tree.leaves(abstract)
    for (path, found), shape in zip(leaves, wanted, strict=True):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), (found, shape)
