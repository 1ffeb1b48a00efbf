"""Static shapes for utterances: what a model was trained with, sizes rounded up to parts of it, rows padded."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


def rounded(size: int, largest: int, parts: int) -> int:
    """`size` up to the next of `parts` equal steps to `largest`: so many shapes are compiled at most."""
    step = -(-largest // parts)
    return min(-(-size // step) * step, largest)


def padded_tokens(
    rows: Sequence[Int[np.ndarray, " _n"]], width: int
) -> tuple[Int[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]:
    """Token ids with zeros behind the end, and the mask from their lengths (0 is also BOS)."""
    ids = np.zeros((len(rows), width), np.int32)
    lengths = np.array([[len(row)] for row in rows])
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, np.arange(width) < lengths


def padded_references(
    references: Sequence[Float[np.ndarray, "_m c"] | None], frames: int, channels: int
) -> tuple[Float[np.ndarray, "b m c"], Bool[np.ndarray, "b m"]]:
    """Zeros behind the end; a voice that is not given has an empty mask, the dropped condition of training."""
    latent = np.zeros((len(references), frames, channels), np.float32)
    lengths = np.zeros((len(references), 1), int)
    for row, reference in enumerate(references):
        if reference is not None:
            latent[row, : len(reference)] = reference
            lengths[row] = len(reference)
    return latent, np.arange(frames) < lengths


def make_noise(seed: int, frames: int, channels: int) -> Float[np.ndarray, "t c"]:
    """Unit noise for one utterance. A longer window begins with the noise of a shorter one."""
    return np.random.default_rng(seed).standard_normal((frames, channels), dtype=np.float32)
