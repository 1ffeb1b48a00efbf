"""A data set: its shards, what dataset.json says of them, and the silence that pads its latents.

Only the shards are needed. What else is missing is computed or defaulted, and said in the log.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from echotts.data.rejections import Rejections
from echotts.data.shards import read_shard
from echotts.data.sources import resolve
from echotts.files import atomic_write

logger = logging.getLogger(__name__)

INFO_NAME = "dataset.json"
SILENCE_NAME = "silence.npy"
KIND = "latents"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard file: its name in the folder, its samples, its size and hash."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What dataset.json holds. None or empty where it is not known.

    `lengths` is a joint histogram (latent frames, bytes of text, samples that are no longer than that and fall in
    no smaller cell); `latent_mean` and `latent_std` are per channel.
    """

    channels: int
    codec_id: str | None = None
    weights_hash: str | None = None
    sample_rate: int | None = None
    hop_length: int | None = None
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()
    hours: float | None = None
    lengths: tuple[tuple[int, int, int], ...] = ()
    shards: tuple[ShardInfo, ...] = ()

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def save(self, path: Path) -> None:
        fields = dataclasses.asdict(self)
        codec = {"id": fields.pop("codec_id"), "weights_hash": fields.pop("weights_hash")}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"kind": KIND, "codec": codec} | fields, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "DatasetInfo":
        """ValueError names the field that is not as save writes it."""
        try:
            fields = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: not JSON ({error}): prepare the data again, or delete the file to do without"
            ) from None
        if not isinstance(fields, dict):
            raise ValueError(f"{path}: not a JSON object")
        if fields.get("kind") == "audio":
            raise ValueError(f"{path.parent}: these shards hold recordings: turn them into latents with `data prepare`")
        reader = _Fields(path, fields)
        codec = _Fields(path, reader.get("codec", _mapping, {}))
        mean, std = reader.get("latent_mean", _floats, ()), reader.get("latent_std", _floats, ())
        channels = reader.get("channels", _count)
        if channels < 1 or any(len(values) not in (0, channels) for values in (mean, std)):
            raise ValueError(f"{path}: {channels} channels, {len(mean)} means, {len(std)} standard deviations")
        return cls(
            channels=channels,
            codec_id=codec.get("id", _string, None),
            weights_hash=codec.get("weights_hash", _string, None),
            sample_rate=reader.get("sample_rate", _count, None),
            hop_length=reader.get("hop_length", _count, None),
            latent_mean=mean,
            latent_std=std,
            hours=reader.get("hours", float, None),
            lengths=reader.get("lengths", _lengths, ()),
            shards=reader.get("shards", _shards, ()),
        )


@dataclass(frozen=True)
class Dataset:
    """Shards in their canonical order, what is known of them, and silence (k, c) float32 to pad with."""

    files: tuple[Path, ...]
    info: DatasetInfo
    silence: np.ndarray


def open_dataset(spec: str) -> Dataset:
    """The data set that `spec` names (see sources.resolve).

    FileNotFoundError where nothing is found; ValueError where folders disagree about the codec, or no shard holds
    a valid latent that tells the channels.
    """
    files = resolve(spec)
    folders = sorted({file.parent for file in files})
    known = {folder: DatasetInfo.load(folder / INFO_NAME) for folder in folders if (folder / INFO_NAME).is_file()}
    if len(known) < len(folders):
        lacking = next(folder for folder in folders if folder not in known)
        logger.info("%s: no %s: lengths and channels are read from the shards", lacking, INFO_NAME)
    info = _join([_of_files(known[folder], folder, files) for folder in known], complete=len(known) == len(folders))
    channels = info.channels if info else _channels_of(files)
    return Dataset(tuple(files), info or DatasetInfo(channels=channels), load_silence(folders, channels))


def load_silence(folders: Sequence[Path], channels: int) -> Float[np.ndarray, "k c"]:
    """The first silence.npy of the folders as float32; one frame of zeros, and a line in the log, where none has it."""
    for folder in folders:
        path = folder / SILENCE_NAME
        if not path.is_file():
            continue
        try:
            silence = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: not a plain npy file ({error})") from None
        if silence.ndim != 2 or len(silence) < 1 or silence.shape[1] != channels or silence.dtype.kind != "f":
            raise ValueError(f"{path}: {silence.dtype} {silence.shape}, expected floats (frames, {channels})")
        if not np.isfinite(silence).all():
            raise ValueError(f"{path}: holds values that are not finite")
        return silence.astype(np.float32)
    logger.warning(
        "%s: no %s: latents are padded with zeros, which is not what silence sounds like", folders[0], SILENCE_NAME
    )
    return np.zeros((1, channels), np.float32)


def _of_files(info: DatasetInfo, folder: Path, files: Sequence[Path]) -> DatasetInfo:
    """The info of those shards of a folder that are used, after a look at their sizes."""
    used = {file.name: file for file in files if file.parent == folder}
    shards = tuple(shard for shard in info.shards if shard.name in used)
    changed = [shard.name for shard in shards if used[shard.name].stat().st_size != shard.bytes]
    if changed:
        logger.warning("%s: %d shards are not of the size in %s, first %s", folder, len(changed), INFO_NAME, changed[0])
    whole = len(shards) == len(info.shards)
    return dataclasses.replace(info, shards=shards, hours=info.hours if whole else None)


def _join(infos: Sequence[DatasetInfo], complete: bool) -> DatasetInfo | None:
    """Several folders as one. The length histogram is kept only when it covers all of them."""
    if not infos:
        return None
    first = infos[0]
    for other in infos[1:]:
        if (first.channels, first.weights_hash) != (other.channels, other.weights_hash):
            raise ValueError(
                f"the folders hold latents of different codecs: {first.codec_id} with {first.channels} channels, "
                f"{other.codec_id} with {other.channels}"
            )
    if len(infos) == 1 and complete:
        return first
    hours = [info.hours for info in infos]
    return dataclasses.replace(
        first,
        latent_mean=(),
        latent_std=(),
        hours=sum(hour for hour in hours if hour is not None) if complete and None not in hours else None,
        lengths=sum((info.lengths for info in infos), ()) if complete and all(info.lengths for info in infos) else (),
        shards=sum((info.shards for info in infos), ()),
    )


def _channels_of(files: Sequence[Path]) -> int:
    rejections = Rejections()
    for file in files[:16]:
        for sample in read_shard(file, None, rejections):
            return sample.latent.shape[1]
    raise ValueError(f"{files[0]}: no valid latent in this shard nor in the next: {rejections.summary()}")


_REQUIRED: Any = object()


class _Fields:
    """Typed access to a JSON object, with messages that name file and field."""

    def __init__(self, path: Path, fields: dict[str, Any]) -> None:
        self._path = path
        self._fields = fields

    def get(self, name: str, convert: Callable[[Any], T], default: Any = _REQUIRED) -> T:
        value = self._fields.get(name)
        if value is None and default is not _REQUIRED:
            return default
        try:
            return convert(value)
        except (TypeError, ValueError, KeyError, OverflowError):
            raise ValueError(f"{self._path}: {name} is {str(value)[:60]!r}: prepare the data again") from None


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError
    return value


def _floats(value: Any) -> tuple[float, ...]:
    return tuple(float(number) for number in value)


def _lengths(value: Any) -> tuple[tuple[int, int, int], ...]:
    return tuple((_count(frames), _count(text_bytes), _count(samples)) for frames, text_bytes, samples in value)


def _shards(value: Any) -> tuple[ShardInfo, ...]:
    return tuple(
        ShardInfo(
            name=_string(item["name"]),
            samples=_count(item["samples"]),
            bytes=_count(item["bytes"]),
            sha256=_string(item["sha256"]),
        )
        for item in value
    )
