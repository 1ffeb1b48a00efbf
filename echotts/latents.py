"""Latents: what is needed of the codec that makes them, and how the model sees them.

The model's are the codec's, or have mean and standard deviation taken out. The statistics are those of the training
data. They travel with the weights, in checkpoints and exports: who speaks undoes them before decoding, and applies
them to references.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypedDict, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float

ScaleName = Literal["none", "scalar", "channel"]
FACT = "latent_scale"  # its name among the facts of a checkpoint and in the header of an export


@runtime_checkable
class LatentCodec(Protocol):
    """What data preparation and speaking need of a codec (echotts.codec.Codec, without loading jax)."""

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

    def silence_latent(self, frames: int) -> Any: ...


class ScaleJson(TypedDict):
    """A scale as checkpoints and exports carry it."""

    mean: list[float]
    std: list[float]


@dataclass(frozen=True, eq=False)
class LatentScale:
    """`mean` and `std`, (c,) or (1,) for all channels; without them latents stay as they are. float32."""

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
        """From the statistics of each channel; `scalar` takes those of all values together. ValueError without any."""
        if name not in get_args(ScaleName):
            raise ValueError(f"{FACT} {name!r}: give one of {', '.join(get_args(ScaleName))}")
        if name == "none":
            return UNSCALED
        if not len(mean):
            raise ValueError(f"{FACT} {name} needs the mean and standard deviation of the latents, which are not known")
        if name == "channel":
            return cls.of(mean, std)
        centre = float(np.mean(mean))
        square = float(np.mean(np.square(std) + np.square(mean)))
        return cls.of([centre], [np.sqrt(max(square - centre**2, 0.0))])

    @classmethod
    def from_json(cls, value: ScaleJson | None, channels: int) -> "LatentScale":
        """What `to_json` gave; None is no scale. ValueError where it is not for so many channels."""
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
        """None where nothing is scaled."""
        return None if self is UNSCALED else {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def normalise(self, latent: Float[np.ndarray, "*_ c"]) -> Float[np.ndarray, "*_ c"]:
        """Codec latents as the model sees them."""
        return latent if self is UNSCALED else (latent.astype(np.float32) - self.mean) / self.std

    def restore(self, latent: Float[np.ndarray, "*_ c"]) -> Float[np.ndarray, "*_ c"]:
        """What the model made, as the codec's decoder takes it."""
        return latent if self is UNSCALED else latent * self.std + self.mean


UNSCALED = LatentScale.of([0.0], [1.0])
