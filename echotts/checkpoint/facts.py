"""What goes with weights from training through checkpoints and exports to speaking: one dataclass, JSON-ready.

A run's data say the first four; a checkpoint adds where the run stood when the weights were taken.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from echotts.config import MAX_SIZE
from echotts.latents import ScaleJson
from echotts.strict_json import check_type
from echotts.text.tokens import TokenizerJson

Size = Annotated[int, Meta(ge=1, le=MAX_SIZE)]
Count = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, kw_only=True)
class CodecFacts:
    """Which codec the latents are of; a bare list of shards says little of it."""

    id: str | None = None
    weights_hash: str | None = None
    sample_rate: Size | None = None
    hop: Size | None = None
    channels: Size | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest sizes a model was trained with: latent frames, tokens (BOS included), reference frames."""

    frames: Size
    tokens: Size
    reference_frames: Size

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Limits":
        """From the `data` section of a stored configuration."""
        return cls(
            frames=max(bucket["frames"] for bucket in data["buckets"]),
            tokens=max(bucket["tokens"] for bucket in data["buckets"]),
            reference_frames=data["reference_frames"],
        )


@dataclass(frozen=True, kw_only=True)
class Facts:
    """None is what a file does not say: a published checkpoint says no more than its step."""

    codec: CodecFacts = CodecFacts()
    tokenizer: TokenizerJson | None = None
    silence: list[list[float]] | None = None  # (1, c): one frame of the codec's silence
    latent_scale: ScaleJson | None = None  # of the model's latents; None: they are the codec's
    weights: str | None = None  # "ema" or "raw"
    step: Count | None = None
    samples_seen: Count | None = None
    buckets: Limits | None = None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], where: str | Path) -> "Facts":
        """What `to_dict` gave, through JSON; other names and None are passed over. ValueError names the wrong field."""
        known = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in fields.items() if name in known and value is not None}
        return check_type(given, where, cls)

    def to_dict(self) -> dict[str, Any]:
        """What is known, JSON-ready."""
        known = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in dataclasses.asdict(self).items() if getattr(self, name) != known[name]}
