"""dataset.json: metadata of a folder of shards, validated on reading."""

import codecs
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from echotts.files import atomic_write
from echotts.strict_json import load_json

INFO_NAME = "dataset.json"
SILENCE_NAME = "silence.npy"
KIND = "latents"
MAX_INFO_BYTES = 64 << 20  # enough for about 400,000 shards

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard file: its name in the folder, number of samples, size and hash."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The contents of dataset.json. Unknown fields are None or empty.

    `lengths` is a joint histogram of cells (latent frames, bytes of text, samples that fit this cell and no smaller
    one); `latent_mean` and `latent_std` are per channel.
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
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        codec = {"id": fields.pop("codec_id"), "weights_hash": fields.pop("weights_hash")}
        return {"kind": KIND, "codec": codec} | fields

    @classmethod
    def load(cls, path: Path) -> "DatasetInfo":
        """Reads the file. ValueError names the first invalid field."""
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, payload: bytes, path: str) -> "DatasetInfo":
        """The same from the bytes of a file; `path` is used in messages."""
        try:
            fields = load_json(payload.removeprefix(codecs.BOM_UTF8), path, max_bytes=MAX_INFO_BYTES)
        except ValueError as error:
            raise ValueError(f"{error}: prepare the data again, or delete the file") from None
        return cls.from_json(fields, path)

    @classmethod
    def from_json(cls, fields: Any, path: str) -> "DatasetInfo":
        if not isinstance(fields, dict):
            raise ValueError(f"{path}: not a JSON object")
        if fields.get("kind") == "audio":
            raise ValueError(f"{path}: these shards hold recordings: convert them to latents with `data prepare`")
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


_REQUIRED: Any = object()


class _Fields:
    """Typed access to a JSON object; errors name the file and the field."""

    def __init__(self, path: str, fields: dict[str, Any]) -> None:
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
