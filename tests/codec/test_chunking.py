"""Windows equal the whole, at any length and window width, and the memory they need does not grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.codec import Codec, chunking, watermark
from echotts.codec.chunking import Past, decode_windows, encode_windows, fill, frame_noise
from echotts.codec.dacvae import CodecConfig, decode_frames, encode_frames
from echotts.codec.watermark import add_watermark, mark
from tests.codec import reference
from tests.codec.conftest import TINY, noise, tiny_params, with_config

EXACT = 1e-5
HOP = TINY.hop_length
WIDTHS = (1, 3, 8, 21)  # few, because each is compiled once

WHOLE_MARK = jax.jit(lambda params, audio, message: mark(params, audio, message, Past(None)))


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(1, 70), width=st.sampled_from(WIDTHS))
def test_decoding_in_windows_equals_the_whole(tiny: Codec, frames: int, width: int):
    latent = noise(1, frames, TINY.latent_channels, seed=frames)
    whole = reference.decode(tiny.params, TINY, latent)
    np.testing.assert_allclose(decode_windows(tiny.params, TINY, latent, width), whole, atol=EXACT)


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 60 * HOP), width=st.sampled_from(WIDTHS))
def test_encoding_in_windows_equals_the_whole(tiny: Codec, samples: int, width: int):
    audio = 0.3 * noise(1, samples, seed=samples)
    whole = reference.encode(tiny.params, TINY, np.concatenate([audio, fill(audio, HOP)], axis=1))
    for ours, wanted in zip(encode_windows(tiny.params, TINY, audio, width), whole, strict=True):
        assert ours.shape == (1, -(-samples // HOP), TINY.latent_channels)
        np.testing.assert_allclose(ours, wanted, atol=EXACT)


@settings(max_examples=20, deadline=None)
@given(blocks=st.integers(1, 60), width=st.sampled_from((6, 48)))
def test_watermarking_in_windows_equals_the_whole(tiny: Codec, blocks: int, width: int):
    audio = 0.3 * noise(2, 6 * blocks, seed=blocks)
    message = np.random.default_rng(blocks).integers(0, 2, (2, 16))
    later = np.pad(audio, ((0, 0), (0, 360 - 6 * blocks)))  # causal: what follows changes nothing
    whole = WHOLE_MARK(tiny.params["watermark"], later, jnp.asarray(message))[:, : 6 * blocks]
    marked = add_watermark(tiny.params["watermark"], audio, message, width)
    np.testing.assert_allclose(marked, whole, atol=EXACT)
    assert np.abs(marked - audio).max() > 1e-3


@pytest.mark.parametrize("rates", [(5, 3), (8, 10)])
def test_windows_equal_the_whole_for_other_rates(rates: tuple[int, ...]):
    config = with_config(encoder_rates=rates, decoder_rates=rates[::-1], decoder_dim=16)
    params = tiny_params(config, seed=3)
    latent = noise(2, 19, config.latent_channels)
    whole = reference.decode(params, config, latent)
    np.testing.assert_allclose(decode_windows(params, config, latent, 4), whole, atol=EXACT)
    audio = 0.3 * noise(2, 19 * config.hop_length)
    for ours, wanted in zip(
        encode_windows(params, config, audio, 4), reference.encode(params, config, audio), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, atol=EXACT)


def test_whole_networks_equal_the_reference_too(tiny: Codec):
    """What the codec's training runs: dacvae.py with layers.py, without windows."""
    latent, audio = noise(1, 9, TINY.latent_channels), 0.3 * noise(1, 9 * HOP)
    decoded = jax.jit(lambda p, z: decode_frames(p, TINY, z))(tiny.params, latent)
    np.testing.assert_allclose(decoded, reference.decode(tiny.params, TINY, latent), atol=EXACT)
    encoded = jax.jit(lambda p, x: encode_frames(p, TINY, x))(tiny.params, audio)
    for ours, wanted in zip(encoded, reference.encode(tiny.params, TINY, audio), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=EXACT)


def test_the_published_receptive_fields_follow_from_the_rates():
    """A window is late by what the layers look ahead: 7 frames and 353 samples; 9,953 samples past a latent's frame."""
    config = CodecConfig()
    _, decoder_delay = chunking._trace(decode_frames, config, (1, 20, 128))
    _, encoder_delay = chunking._trace(encode_frames, config, (1, 20 * 1920))
    assert decoder_delay == 7 * 1920 + 353
    assert encoder_delay == -(-9953 // 1920)


def test_one_window_shape_is_compiled_for_all_lengths(tiny: Codec):
    width = 8
    decode_windows(tiny.params, TINY, noise(1, 3, TINY.latent_channels), width)
    encode_windows(tiny.params, TINY, noise(1, 3), width)
    add_watermark(tiny.params["watermark"], noise(1, 60), np.zeros((1, 16), np.int32), 48)
    compiled = [chunking._decode_window, chunking._encode_window, watermark._mark_window]
    before = [function._cache_size() for function in compiled]  # pyright: ignore[reportAttributeAccessIssue]
    for frames in (1, 2, 7, 8, 9, 16, 57):
        decode_windows(tiny.params, TINY, noise(1, frames, TINY.latent_channels), width)
        encode_windows(tiny.params, TINY, noise(1, frames * HOP - 1), width)
        add_watermark(tiny.params["watermark"], noise(1, frames * 6), np.zeros((1, 16), np.int32), 48)
    after = [function._cache_size() for function in compiled]  # pyright: ignore[reportAttributeAccessIssue]
    assert after == before


def test_what_is_remembered_does_not_grow_with_the_length(tiny: Codec):
    """The memory between windows has one size, and a window's is that of one call."""
    shapes, _ = chunking._trace(decode_frames, TINY, (1, 5, TINY.latent_channels))
    longer, _ = chunking._trace(decode_frames, TINY, (1, 50, TINY.latent_channels))
    assert [shape.shape for shape in shapes] == [shape.shape for shape in longer]


def test_the_end_is_filled_by_reflection_and_short_audio_with_zeros():
    audio = np.arange(1.0, 6.0, dtype=np.float32)[None]
    np.testing.assert_array_equal(fill(audio, 8), [[4, 3, 2]])
    np.testing.assert_array_equal(fill(audio, 5), np.zeros((1, 0)))
    np.testing.assert_array_equal(fill(audio[:, :4], 8), [[0, 0, 0, 0]])
    np.testing.assert_array_equal(fill(audio[:, :1], 8), np.zeros((1, 7)))


def test_noise_is_a_function_of_key_and_frame():
    key = jax.random.key(3)
    long = frame_noise(key, 2, 150, 5)
    np.testing.assert_array_equal(frame_noise(key, 2, 70, 5), long[:, :70])
    assert abs(long.mean()) < 0.1
    assert 0.9 < long.std() < 1.1
    assert len(np.unique(long)) == long.size
