"""Latents: the interface of a codec, and the scale of latents that the model uses.

The model sees codec latents as they are, or with mean and standard deviation removed. The statistics are those of the
training data. They are stored with the weights in checkpoints and exports; inference applies them to references and
undoes them before decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypedDict, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float

ScaleName = Literal["none", "scalar", "channel"]
FACT = "latent_scale"  # its key in a checkpoint's facts and an export's header


@runtime_checkable
class LatentCodec(Protocol):
    """The codec interface of data preparation and synthesis (echotts.codec.Codec, without importing jax)."""

    @property
    def sample_rate(self) -> int: ...

    @property
    def hop_length(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def codec_id(self) -> str: ...

    @cached_property
    def weights_hash(self) -> str: ...

    def encode(self, audio: Any, /) -> Any: ...

    def decode(self, latents: Any, /) -> Any: ...

    def decode_blocks(self, latents: Any, /) -> Any: ...

    def silence_latent(self, frames: int) -> Any: ...


class ScaleJson(TypedDict):
    """The JSON form of a scale in checkpoints and exports."""

    mean: list[float]
    std: list[float]


@dataclass(frozen=True, eq=False)
class LatentScale:
    """`mean` and `std` are (c,), or (1,) for all channels, in float32. UNSCALED leaves latents unchanged."""

    mean: np.ndarray
    std: np.ndarray

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape or not len(self.mean):
            raise ValueError(f"{FACT}: means {self.mean.shape} and standard deviations {self.std.shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise ValueError(f"{FACT}: a mean is not finite, or a standard deviation not above 0")

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float]) -> "LatentScale":
        return cls(np.asarray(mean, np.float32), np.asarray(std, np.float32))

    @classmethod
    def measured(cls, name: ScaleName, mean: Sequence[float], std: Sequence[float]) -> "LatentScale":
        """From per-channel statistics; `scalar` pools them over all channels. ValueError if they are missing."""
        if name not in get_args(ScaleName):
            raise ValueError(f"{FACT} {name!r}: give one of {', '.join(get_args(ScaleName))}")
        if name == "none":
            return UNSCALED
        if not len(mean):
            raise ValueError(f"{FACT} {name} needs the mean and standard deviation of the latents, which are unknown")
        if name == "channel":
            return cls.of(mean, std)
        centre = float(np.mean(mean))
        square = float(np.mean(np.square(std) + np.square(mean)))
        return cls.of([centre], [np.sqrt(max(square - centre**2, 0.0))])

    @classmethod
    def from_json(cls, value: ScaleJson | None, channels: int) -> "LatentScale":
        """Reads the form of `to_json`; None is UNSCALED. ValueError if it is for another number of channels."""
        if value is None:
            return UNSCALED
        scale = cls.of(value["mean"], value["std"])
        if len(scale.mean) not in (1, channels):
            raise ValueError(f"{FACT} has {len(scale.mean)} channels, the latents have {channels}")
        return scale

    @property
    def name(self) -> ScaleName:
        """The name of the scaling, as passed to `measured`."""
        if self is UNSCALED:
            return "none"
        return "scalar" if len(self.mean) == 1 else "channel"

    def to_json(self) -> ScaleJson | None:
        """None if nothing is scaled."""
        return None if self is UNSCALED else {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def normalise(self, latent: Float[np.ndarray, "*_ c"]) -> Float[np.ndarray, "*_ c"]:
        """Converts codec latents to model latents."""
        return latent if self is UNSCALED else (latent.astype(np.float32) - self.mean) / self.std

    def restore(self, latent: Float[np.ndarray, "*_ c"]) -> Float[np.ndarray, "*_ c"]:
        """Converts model latents to codec latents."""
        return latent if self is UNSCALED else latent * self.std + self.mean


UNSCALED = LatentScale.of([0.0], [1.0])
