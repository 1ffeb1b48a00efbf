"""The codec as the rest of the program uses it: shapes, lengths, sampling, messages, silence, refusals."""

import jax
import numpy as np
import pytest

from echotts.codec import Codec
from tests.codec.conftest import TINY, noise, tiny_params

HOP = TINY.hop_length


def test_its_numbers_come_from_the_configuration(tiny: Codec):
    assert (tiny.sample_rate, tiny.hop_length, tiny.latent_channels, tiny.codec_id) == (8000, 24, 5, "tiny")
    assert len(tiny.weights_hash) == 64


@pytest.mark.parametrize("samples", [1, HOP // 2, HOP // 2 + 1, HOP - 1, HOP, HOP + 1, 7 * HOP])
def test_audio_of_any_length_is_encoded_and_decoded_to_whole_frames(tiny: Codec, samples: int):
    latent = tiny.encode(noise(2, samples))
    assert latent.shape == (2, -(-samples // HOP), 5)
    assert latent.dtype == np.float32
    audio = tiny.decode(latent)
    assert audio.shape == (2, latent.shape[1] * HOP)
    assert np.abs(audio).max() <= 1


def test_rows_do_not_see_each_other(tiny: Codec):
    audio = noise(2, 200)
    np.testing.assert_allclose(tiny.encode(audio)[1:], tiny.encode(audio[1:]), atol=1e-5)


def test_jax_arrays_are_taken_too(tiny: Codec):
    audio = noise(1, 100)
    np.testing.assert_array_equal(tiny.encode(jax.numpy.asarray(audio)), tiny.encode(audio))


def test_a_key_samples_the_posterior_reproducibly(tiny: Codec):
    audio = noise(1, 30 * HOP)
    mean = tiny.encode(audio)
    first, again = (tiny.encode(audio, key=jax.random.key(1)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - mean).max() > 0.01
    assert np.abs(tiny.encode(audio, key=jax.random.key(2)) - first).max() > 0.01


def test_a_watermarked_codec_embeds_its_message_in_whatever_it_decodes(tiny: Codec):
    latent = noise(1, 9, 5)
    message = (0, 1) * 8
    marked = tiny.watermarked(message)
    wanted = tiny.decode(latent, watermark=np.array([message]))
    np.testing.assert_array_equal(marked.decode(latent), wanted)
    stream = marked.stream_decoder()
    np.testing.assert_allclose(np.concatenate([stream.push(latent), stream.finish()], axis=1), wanted, atol=1e-5)
    np.testing.assert_array_equal(marked.on_device(jax.devices()[0]).decode(latent), wanted)
    assert marked.weights_hash == tiny.weights_hash
    assert tiny.message is None and not np.array_equal(tiny.decode(latent), wanted)
    with pytest.raises(ValueError, match="watermark must be"):
        tiny.watermarked((1, 0))


def test_each_message_gives_another_watermark(tiny: Codec):
    latent = noise(1, 6, 5)
    clean = tiny.decode(latent)
    zeros, ones = (tiny.decode(latent, watermark=np.full((1, 16), bit)) for bit in (0, 1))
    assert np.abs(zeros - clean).max() > 1e-3
    assert np.abs(ones - zeros).max() > 1e-3
    np.testing.assert_array_equal(tiny.decode(latent, watermark=np.zeros((1, 16), bool).astype(np.uint8)), zeros)


def test_silence_latents_equal_encoded_silence(tiny: Codec):
    for frames in (1, 20, 33, 34, 80):
        whole = tiny.encode(np.zeros((1, frames * HOP), np.float32))[0]
        np.testing.assert_allclose(tiny.silence_latent(frames), whole, atol=1e-6)


def test_the_window_width_changes_nothing(tiny: Codec):
    other = Codec(tiny.params, TINY, "tiny", window_frames=8)
    latent = noise(1, 40, 5)
    np.testing.assert_allclose(other.decode(latent), tiny.decode(latent), atol=1e-5)
    assert other.weights_hash == tiny.weights_hash


def test_the_hash_distinguishes_weights(tiny: Codec):
    changed = jax.tree.map(np.array, tiny.params)
    changed["decoder"]["blocks"][1]["units"][2]["point"]["bias"][0] += 1e-6
    assert Codec(changed, TINY, "tiny").weights_hash != tiny.weights_hash


def test_wrong_arrays_are_refused_in_one_line(tiny: Codec):
    bare = tiny_params()
    del bare["watermark"]
    unmarked = Codec(bare, TINY, "bare")
    calls = {
        "latents have 7 channels, codec tiny has 5": lambda: tiny.decode(noise(1, 3, 7)),
        "no samples": lambda: tiny.encode(np.zeros((1, 0), np.float32)),
        "some values are NaN": lambda: tiny.encode(np.full((1, 9), np.nan, np.float32)),
        "codec bare has no watermark": lambda: unmarked.decode(noise(1, 3, 5), watermark=np.zeros((1, 16), int)),
        "of 0 and 1": lambda: tiny.decode(noise(1, 3, 5), watermark=np.full((1, 16), 2)),
        "window_frames 0": lambda: Codec(bare, TINY, "bare", window_frames=0),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
