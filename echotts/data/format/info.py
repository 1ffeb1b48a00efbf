"""dataset.json: metadata of a folder of shards, validated on reading."""

import codecs
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from echotts.files import write_json
from echotts.strict_json import check_type, load_json

INFO_NAME = "dataset.json"
SILENCE_NAME = "silence.npy"
KIND = "latents"
MAX_INFO_BYTES = 64 << 20  # enough for about 400,000 shards

Count = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard file: its name in the folder, number of samples, size and hash."""

    name: str
    samples: Count
    bytes: Count
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The contents of dataset.json. Unknown fields are None or empty.

    `lengths` is a joint histogram of cells (latent frames, bytes of text, samples that fit this cell and no smaller
    one); `latent_mean` and `latent_std` are per channel.
    """

    channels: Annotated[int, Meta(ge=1)]
    codec_id: str | None = None
    weights_hash: str | None = None
    sample_rate: Count | None = None
    hop_length: Count | None = None
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()
    hours: float | None = None
    lengths: tuple[tuple[Count, Count, Count], ...] = ()
    shards: tuple[ShardInfo, ...] = ()

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        codec = {"id": fields.pop("codec_id"), "weights_hash": fields.pop("weights_hash")}
        return {"kind": KIND, "codec": codec} | fields

    @classmethod
    def parse(cls, payload: bytes, path: str) -> "DatasetInfo":
        """Reads the bytes of a file; `path` is used in messages. ValueError names the first invalid field."""
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
        known = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in fields.items() if name in known and value is not None}
        try:
            codec = check_type(fields.get("codec") or {}, f"{path}: codec", dict[str, Any])
            info = check_type(
                given | {"codec_id": codec.get("id"), "weights_hash": codec.get("weights_hash")}, path, cls
            )
        except ValueError as error:
            raise ValueError(f"{error}: prepare the data again") from None
        mean, std = info.latent_mean, info.latent_std
        if any(len(values) not in (0, info.channels) for values in (mean, std)):
            raise ValueError(f"{path}: {info.channels} channels, {len(mean)} means, {len(std)} standard deviations")
        return info
