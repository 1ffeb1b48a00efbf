"""Collates samples into a batch of static shape: latents padded with silence, texts and references with zeros."""

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
    """The input of a train step, as a pytree. Masks are True where there is data.

    Leaves are untyped because a pytree may also hold shardings, shapes or tracers in their place.
    """

    latent: Any  # (b, t, c) float32, padded with silence
    latent_mask: Any  # (b, t) bool
    text_ids: Any  # (b, n) int32, starts with BOS, padded with 0
    text_mask: Any  # (b, n) bool, includes BOS
    speaker_latent: Any  # (b, m, c) float32, padded with zeros
    speaker_mask: Any  # (b, m) bool, all False for a sample without a reference


def collate(
    samples: Sequence[Sample],
    bucket: Bucket,
    tokenizer: Tokenizer,
    silence: Float[np.ndarray, "k c"],
    reference_frames: int,
    scale: LatentScale = UNSCALED,
) -> tuple[Batch, list[str]]:
    """Arrays in the shape of the bucket, and the samples' names in row order.

    A latent is padded with `silence` from the same frame number on (repeated if too short): silence is not the zero
    vector, and since the network has no padding mask it learns to end with whatever the padding is. References are
    cropped to their first `reference_frames`. Latents, references and silence are normalised by `scale`. ValueError for
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
