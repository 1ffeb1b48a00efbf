"""Samples to a batch of static shape: latents padded with silence, texts and references padded and masked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from echotts.config import Bucket
from echotts.data.format.shards import Sample
from echotts.latents import UNSCALED, LatentScale
from echotts.text.tokens import Tokenizer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """What a train step reads; a pytree. Masks are True where there is something.

    Leaves are untyped because a pytree also carries shardings, shapes and tracers in their place.
    """

    latent: Any  # (b, t, c) float32, silence behind the end
    latent_mask: Any  # (b, t) bool
    text_ids: Any  # (b, n) int32, BOS first, 0 behind the end
    text_mask: Any  # (b, n) bool, True for BOS
    speaker_latent: Any  # (b, m, c) float32, zeros behind the end
    speaker_mask: Any  # (b, m) bool, nowhere True for a sample without a reference


def collate(
    samples: Sequence[Sample],
    bucket: Bucket,
    tokenizer: Tokenizer,
    silence: Float[np.ndarray, "k c"],
    reference_frames: int,
    scale: LatentScale = UNSCALED,
) -> tuple[Batch, list[str]]:
    """Arrays of the bucket's shape, and the samples' names in row order.

    A latent ends in the silence of the same place of the clock (repeated when `silence` is shorter), because
    silence is not the zero vector and the network has no padding mask: it learns to end in what it is padded with.
    A reference is cut to its first `reference_frames`. All three come out as `scale` normalises them. ValueError for
    a sample that does not fit the bucket.
    """
    rows, channels = len(samples), silence.shape[1]
    latent = np.empty((rows, bucket.frames, channels), np.float32)
    latent[:] = scale.normalise(silence)[np.arange(bucket.frames) % len(silence)]
    text_ids = np.zeros((rows, bucket.tokens), np.int32)
    speaker_latent = np.zeros((rows, reference_frames, channels), np.float32)
    lengths = np.zeros((3, rows, 1), np.int32)
    for row, sample in enumerate(samples):
        frames = len(sample.latent)
        if frames > bucket.frames:
            raise ValueError(f"{sample.name}: {frames} frames do not fit the bucket of {bucket.frames}")
        ids = tokenizer.encode(sample.text, bucket.tokens)
        latent[row, :frames] = scale.normalise(sample.latent)
        text_ids[row, : len(ids)] = ids
        lengths[:2, row, 0] = frames, len(ids)
        if sample.reference is not None:
            reference = sample.reference[:reference_frames]
            speaker_latent[row, : len(reference)] = scale.normalise(reference)
            lengths[2, row, 0] = len(reference)
    batch = Batch(
        latent=latent,
        latent_mask=np.arange(bucket.frames) < lengths[0],
        text_ids=text_ids,
        text_mask=np.arange(bucket.tokens) < lengths[1],
        speaker_latent=speaker_latent,
        speaker_mask=np.arange(reference_frames) < lengths[2],
    )
    return batch, [sample.name for sample in samples]
