"""What speaking needs of a codec: sizes, both ways, and silence."""

from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

CONTEXT_FRAMES = 8  # what a codec frame can depend on, each side (docs/codec.md)


@runtime_checkable
class Codec(Protocol):
    """What speaking needs of a codec (echotts.codec.load_codec)."""

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


def silence_of(codec: Codec) -> np.ndarray:
    """One frame of the codec's silence: the median over a second, because the edges are not silence."""
    frames = round(codec.sample_rate / codec.hop_length)
    return np.median(np.asarray(codec.silence_latent(frames)), axis=0, keepdims=True)
