"""The codec interface that synthesis needs, and one frame of silence."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

CONTEXT_FRAMES = 8  # frames on each side on which a codec frame can depend (docs/codec.md)


@runtime_checkable
class Codec(Protocol):
    """The codec interface that synthesis needs (echotts.codec.load_codec)."""

    @property
    def sample_rate(self) -> int: ...

    @property
    def hop_length(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def codec_id(self) -> str: ...

    def encode(self, audio: Any, /) -> Any: ...

    def decode(self, latents: Any, /) -> Any: ...

    def silence_latent(self, frames: int) -> Any: ...


def silence_of(codec: Codec) -> np.ndarray:
    """One frame of the codec's silence: the median over a second, because frames at the edges differ."""
    frames = round(codec.sample_rate / codec.hop_length)
    return np.median(np.asarray(codec.silence_latent(frames)), axis=0, keepdims=True)
