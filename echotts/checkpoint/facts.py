"""Facts that accompany weights from training through checkpoints and exports to inference, JSON-serialisable.

The first four come from a run's data; a checkpoint adds the state of the run when the weights were saved.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from echotts.config import MAX_RANK, MAX_SIZE
from echotts.latents import ScaleJson
from echotts.strict_json import check_type
from echotts.text.tokens import TokenizerJson

Size = Annotated[int, Meta(ge=1, le=MAX_SIZE)]
Count = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, kw_only=True)
class CodecFacts:
    """The codec of the latents; for a bare list of shards little is known."""

    id: str | None = None
    weights_hash: str | None = None
    sample_rate: Size | None = None
    hop: Size | None = None
    channels: Size | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest sizes in training: latent frames, tokens (including BOS), reference frames."""

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
class StudentFacts:
    """A student beside the weights: the rank of its adapters, and the guidance scales and interval of its training."""

    rank: Annotated[int, Meta(ge=1, le=MAX_RANK)]
    scales: tuple[float, float]
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Unknown facts are None: of a published checkpoint only the step is known."""

    codec: CodecFacts = CodecFacts()
    tokenizer: TokenizerJson | None = None
    silence: list[list[float]] | None = None  # (1, c), one frame of the codec's silence
    latent_scale: ScaleJson | None = None  # normalisation of the model's latents; None: codec latents as they are
    weights: str | None = None  # "ema" or "raw"
    step: Count | None = None
    samples_seen: Count | None = None
    buckets: Limits | None = None
    student: StudentFacts | None = None  # of a model with a student (model/student.py)
    base: str | None = None  # hash of the frozen weights that a run adapts (training/tuning.py)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], where: str | Path) -> "Facts":
        """Reads the JSON form of `to_dict`; unknown names and None are ignored. ValueError names the invalid field."""
        known = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in fields.items() if name in known and value is not None}
        return check_type(given, where, cls)

    def to_dict(self) -> dict[str, Any]:
        """The known facts, JSON-serialisable."""
        known = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in dataclasses.asdict(self).items() if getattr(self, name) != known[name]}
