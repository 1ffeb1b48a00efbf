"""Sound to latents: what is needed of a codec, and clips of unequal length in batches of few shapes."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

ENCODE_ROWS = 8
ENCODE_GRID_FRAMES = 16


@runtime_checkable
class Encoder(Protocol):
    """What is needed of a codec (echotts.codec)."""

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

    def encode(self, audio: Any) -> Any: ...

    def silence_latent(self, frames: int) -> Any: ...


def encode_clips(codec: Encoder, clips: Sequence[Float[np.ndarray, " _"]]) -> list[Float[np.ndarray, " _ c"]]:
    """The latents (ceil(n / hop), c) of each clip, encoded as if silence followed it.

    Clips are filled up to a grid of lengths and encoded ENCODE_ROWS at a time, so few shapes are compiled; the
    filling depends on a clip's own length alone, so its neighbours do not change its latents.
    """
    grid = ENCODE_GRID_FRAMES * codec.hop_length
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):
        by_length[-(-len(clip) // grid) * grid].append(index)
    latents: dict[int, np.ndarray] = {}
    for length, indices in sorted(by_length.items()):
        for first in range(0, len(indices), ENCODE_ROWS):
            rows = indices[first : first + ENCODE_ROWS]
            audio = np.zeros((ENCODE_ROWS, length), np.float32)
            for row, index in enumerate(rows):
                audio[row, : len(clips[index])] = clips[index]
            encoded = np.asarray(codec.encode(audio))
            for row, index in enumerate(rows):
                latents[index] = encoded[row, : -(-len(clips[index]) // codec.hop_length)]
    return [latents[index] for index in range(len(clips))]
