"""From samples to arrays: padding with silence, masks, cropping of the reference."""

import jax
import numpy as np
import pytest

from echotts.config import Bucket
from echotts.data.stream.batch import Batch, collate
from tests.data.corpus import CHANNELS, TOKENIZER, sample

SILENCE = np.arange(3 * CHANNELS, dtype=np.float32).reshape(3, CHANNELS)
BUCKET = Bucket(frames=8, tokens=16)


def test_rows_are_padded_with_silence_zero_ids_and_empty_masks() -> None:
    long, short = sample("a", frames=8, reference=9), sample("b", frames=5, reference=None, text="é")
    batch, names = collate([long, short], BUCKET, TOKENIZER, SILENCE, reference_frames=6)
    assert names == ["a", "b"]
    np.testing.assert_array_equal(batch.latent[0], long.latent.astype(np.float32))
    np.testing.assert_array_equal(batch.latent[1, :5], short.latent.astype(np.float32))
    np.testing.assert_array_equal(batch.latent[1, 5:], SILENCE[[2, 0, 1]])  # the silence of frames 5, 6, 7
    np.testing.assert_array_equal(batch.latent_mask.sum(axis=1), [8, 5])
    np.testing.assert_array_equal(batch.text_ids[1], [0, 0xC3, 0xA9] + [0] * 13)
    np.testing.assert_array_equal(batch.text_mask.sum(axis=1), [8, 3])
    np.testing.assert_array_equal(batch.speaker_latent[0], long.reference[:6].astype(np.float32))
    np.testing.assert_array_equal(batch.speaker_mask.sum(axis=1), [6, 0])
    assert not batch.speaker_latent[1].any()


def test_a_short_reference_is_padded_with_zeros_behind_its_mask() -> None:
    short = sample("a", reference=4)
    batch, _ = collate([short], BUCKET, TOKENIZER, SILENCE, reference_frames=6)
    np.testing.assert_array_equal(batch.speaker_mask, [[True] * 4 + [False] * 2])
    np.testing.assert_array_equal(batch.speaker_latent[0, :4], short.reference.astype(np.float32))
    assert not batch.speaker_latent[0, 4:].any()


def test_arrays_have_the_promised_types_and_the_batch_is_a_pytree() -> None:
    batch, _ = collate([sample("a")], BUCKET, TOKENIZER, SILENCE, 6)
    assert [leaf.dtype.name for leaf in jax.tree.leaves(batch)] == [
        "float32",
        "bool",
        "int32",
        "bool",
        "float32",
        "bool",
    ]
    assert isinstance(jax.tree.map(lambda leaf: leaf.shape, batch), Batch)


def test_what_does_not_fit_is_an_error_with_its_name() -> None:
    with pytest.raises(ValueError, match="a: 9 frames do not fit the bucket of 8"):
        collate([sample("a", frames=9)], BUCKET, TOKENIZER, SILENCE, 6)
    with pytest.raises(ValueError, match="15 fit"):
        collate([sample("a", text="x" * 16)], BUCKET, TOKENIZER, SILENCE, 6)
