"""Windows and streams equal a single pass for both families, any length and window width; memory does not grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.codec import Codec, chunking, watermark, windows
from echotts.codec.backbone import decode_frames, encode_features, encode_frames
from echotts.codec.chunking import Past
from echotts.codec.config import CodecConfig
from echotts.codec.watermark import WatermarkStream, mark
from echotts.codec.windows import EncoderStream, decode_windows, encode_windows, fill, frame_noise, powers_of_two
from tests.codec import reference
from tests.codec.conftest import TINY, noise, tiny_params, with_config

EXACT = 1e-5
HOP = TINY.hop_length
WIDTHS = (1, 3, 8, 21)  # few, because each is compiled once
FAMILIES = ("tiny", "tiny_dac")

WHOLE_MARK = jax.jit(lambda params, audio, message: mark(params, audio, message, Past(None)))

codecs: dict[str, Codec] = {}


@pytest.fixture(autouse=True, scope="module")
def both(tiny: Codec, tiny_dac: Codec) -> None:
    codecs.update(tiny=tiny, tiny_dac=tiny_dac)


def encoded(codec: Codec, audio: np.ndarray, width: int, **options: object) -> tuple[np.ndarray, np.ndarray]:
    pieces = list(encode_windows(codec.params, codec.config, audio, width, **options))  # pyright: ignore
    time = 2 if codec.config.quantized else 1
    first, second = zip(*pieces, strict=True)
    return np.concatenate(first, axis=1), np.concatenate(second, axis=time)


def filled(codec: Codec, audio: np.ndarray) -> np.ndarray:
    missing = -audio.shape[1] % HOP
    return np.concatenate([audio, fill(audio, missing, reflect=not codec.config.quantized)], axis=1)


def assert_encoded(ours: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...], codec: Codec) -> None:
    assert [part.shape for part in ours] == [part.shape for part in wanted]
    np.testing.assert_allclose(ours[0], wanted[0], atol=EXACT)
    if codec.config.quantized:
        np.testing.assert_array_equal(ours[1], wanted[1])
    else:
        np.testing.assert_allclose(ours[1], wanted[1], atol=EXACT)


@settings(max_examples=40, deadline=None)
@given(family=st.sampled_from(FAMILIES), frames=st.integers(1, 70), width=st.sampled_from(WIDTHS))
def test_decoding_in_windows_equals_a_single_pass(family: str, frames: int, width: int):
    codec = codecs[family]
    latent = noise(1, frames, codec.latent_channels, seed=frames)
    whole = reference.decode(codec.params, codec.config, latent)
    assert whole.shape == (1, codec.config.output_samples(frames))
    np.testing.assert_allclose(decode_windows(codec.params, codec.config, latent, width), whole, atol=EXACT)


@settings(max_examples=40, deadline=None)
@given(family=st.sampled_from(FAMILIES), samples=st.integers(1, 60 * HOP), width=st.sampled_from(WIDTHS))
def test_encoding_in_windows_equals_a_single_pass(family: str, samples: int, width: int):
    codec = codecs[family]
    audio = 0.3 * noise(1, samples, seed=samples)
    whole = reference.encode(codec.params, codec.config, filled(codec, audio))
    assert_encoded(encoded(codec, audio, width), whole, codec)


@settings(max_examples=25, deadline=None)
@given(family=st.sampled_from(FAMILIES), lengths=st.lists(st.integers(1, 30), min_size=3, max_size=3))
def test_rows_of_unequal_length_decode_as_they_do_alone(family: str, lengths: list[int]):
    """Content behind a row's end, here loud noise, does not affect the row."""
    codec = codecs[family]
    latent = 3 * noise(3, max(lengths), codec.latent_channels, seed=lengths[0])
    audio = codec.decode(latent, lengths=lengths)
    for row, length in enumerate(lengths):
        alone = reference.decode(codec.params, codec.config, latent[row : row + 1, :length])
        np.testing.assert_allclose(audio[row : row + 1, : alone.shape[1]], alone, atol=EXACT)
        assert not audio[row, alone.shape[1] :].any()


@settings(max_examples=25, deadline=None)
@given(family=st.sampled_from(FAMILIES), lengths=st.lists(st.integers(1, 20 * HOP), min_size=3, max_size=3))
def test_rows_of_unequal_length_encode_as_they_do_alone(family: str, lengths: list[int]):
    codec = codecs[family]
    audio = noise(3, max(lengths), seed=lengths[0])
    rows = encoded(codec, audio, 5, lengths=lengths)
    for row, length in enumerate(lengths):
        alone = reference.encode(codec.params, codec.config, filled(codec, audio[row : row + 1, :length]))
        frames = alone[0].shape[1]
        time = -1 if codec.config.quantized else 1
        ours = (rows[0][row : row + 1, :frames], rows[1][row : row + 1].take(range(frames), axis=time))
        assert_encoded(ours, alone, codec)
        assert not rows[0][row, frames:].any()
        assert not rows[1][row].take(range(frames, rows[1].shape[time]), axis=time if time < 0 else 0).any()


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    pieces=st.lists(st.integers(0, 13), min_size=1, max_size=8).filter(sum),
    marked=st.booleans(),
)
def test_a_decoder_stream_equals_a_single_pass(family: str, pieces: list[int], marked: bool):
    codec = codecs[family]
    message = np.random.default_rng(sum(pieces)).integers(0, 2, (2, 16)) if marked and codec.has_watermark else None
    latent = noise(2, sum(pieces), codec.latent_channels, seed=len(pieces))
    stream = codec.stream_decoder(2, message)
    ends = np.cumsum(pieces)
    audio = [stream.push(latent[:, end - count : end]) for count, end in zip(pieces, ends, strict=True)]
    whole = codec.decode(latent, message)
    joined = np.concatenate([*audio, stream.finish()], axis=1)
    np.testing.assert_allclose(joined, whole, atol=EXACT)
    np.testing.assert_allclose(codec.decode(latent), reference.decode(codec.params, codec.config, latent), atol=EXACT)


def test_a_decoder_stream_gives_each_sample_as_soon_as_it_is_determined(tiny: Codec):
    """Samples that a push gives do not change with later latents; those in the next frame do."""
    latent = noise(1, 20, TINY.latent_channels)
    _, delay = chunking.plan(decode_frames, TINY, (1, 4, TINY.latent_channels))
    stream = tiny.stream_decoder()
    given = 0
    for frame in range(19):
        given += stream.push(latent[:, frame : frame + 1]).shape[1]
        assert given == max(0, (frame + 1) * HOP - delay)
    whole = tiny.decode(latent)[0]
    changed = latent.copy()
    changed[:, 19:] += 100
    different = np.abs(tiny.decode(changed)[0] - whole) > 1e-7
    assert not different[:given].any()
    assert different[given : given + HOP].any()


def test_the_audio_of_decode_comes_window_by_window_too(tiny: Codec):
    latent = noise(2, 3 * tiny.window_frames + 1, TINY.latent_channels)
    blocks = list(tiny.decode_blocks(latent))
    assert len(blocks) >= 4
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), tiny.decode(latent))


def test_a_stream_without_latents_gives_no_audio_and_a_finished_one_takes_none(tiny: Codec):
    stream = tiny.stream_decoder(2, np.zeros((2, 16), int))
    assert stream.push(noise(2, 0, TINY.latent_channels)).shape == (2, 0)
    assert stream.finish().shape == (2, 0)
    assert tiny.stream_decoder().finish().shape == (1, 0)
    with pytest.raises(ValueError, match="the stream is finished"):
        stream.push(noise(2, 1, TINY.latent_channels))


def test_codes_stream_too(tiny_dac: Codec):
    codes = np.random.default_rng(0).integers(0, 16, (1, 3, 11))
    stream = tiny_dac.stream_decoder()
    audio = [stream.push(codes[:, :, :4]), stream.push(codes[:, :, 4:]), stream.finish()]
    np.testing.assert_allclose(np.concatenate(audio, axis=1), tiny_dac.decode(codes=codes), atol=EXACT)


@settings(max_examples=20, deadline=None)
@given(family=st.sampled_from(FAMILIES), pieces=st.lists(st.integers(0, 5 * HOP), min_size=1, max_size=6).filter(sum))
def test_an_encoder_stream_equals_a_single_pass(family: str, pieces: list[int]):
    codec = codecs[family]
    audio = 0.3 * noise(1, sum(pieces), seed=len(pieces))
    stream = EncoderStream(codec.params, codec.config, 1, powers_of_two(4))
    ends = np.cumsum(pieces)
    parts = [stream.push(audio[:, end - count : end]) for count, end in zip(pieces, ends, strict=True)]
    first, second = zip(*parts, stream.finish(), strict=True)
    joined = (np.concatenate(first, axis=1), np.concatenate(second, axis=2 if codec.config.quantized else 1))
    assert_encoded(joined, reference.encode(codec.params, codec.config, filled(codec, audio)), codec)


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(1, 360), widths=st.sampled_from(((1,), (8,), (1, 2, 4))))
def test_watermarking_in_windows_equals_a_single_pass(samples: int, widths: tuple[int, ...]):
    params = codecs["tiny"].params["watermark"]
    audio = 0.3 * noise(2, samples, seed=samples)
    message = np.random.default_rng(samples).integers(0, 2, (2, 16))
    later = np.pad(audio, ((0, 0), (0, 360 - samples)))  # causal: what follows changes nothing
    whole = WHOLE_MARK(params, later, jnp.asarray(message))[:, :samples]
    stream = WatermarkStream(params, message, widths)
    marked = np.concatenate(
        [stream.push(audio[:, : samples // 2]), stream.push(audio[:, samples // 2 :]), stream.finish()], axis=1
    )
    np.testing.assert_allclose(marked, whole, atol=EXACT)
    assert np.abs(marked - audio).max() > 1e-3


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("rates", [(5, 3), (8, 10)])
def test_windows_equal_a_single_pass_for_other_rates(rates: tuple[int, ...], quantized: bool):
    config = with_config(encoder_rates=rates, decoder_rates=rates[::-1], decoder_dim=16, n_codebooks=2 * quantized)
    codec = Codec(tiny_params(config, seed=3), config, "other")
    latent = noise(2, 19, config.latent_channels)
    whole = reference.decode(codec.params, config, latent)
    np.testing.assert_allclose(decode_windows(codec.params, config, latent, 4), whole, atol=EXACT)
    audio = 0.3 * noise(2, 19 * config.hop_length)
    assert_encoded(encoded(codec, audio, 4), reference.encode(codec.params, config, audio), codec)


def test_whole_networks_equal_the_reference_too(tiny: Codec):
    """The network as in codec training: backbone.py with layers.py, without windows."""
    latent, audio = noise(1, 9, TINY.latent_channels), 0.3 * noise(1, 9 * HOP)
    decoded = jax.jit(lambda p, z: decode_frames(p, TINY, z))(tiny.params, latent)
    np.testing.assert_allclose(decoded, reference.decode(tiny.params, TINY, latent), atol=EXACT)
    ours = jax.jit(lambda p, x: encode_frames(p, TINY, x))(tiny.params, audio)
    for part, wanted in zip(ours, reference.encode(tiny.params, TINY, audio), strict=True):
        np.testing.assert_allclose(part, wanted, atol=EXACT)


def test_the_published_receptive_fields_follow_from_the_rates():
    """The latency of a window is the look-ahead of the layers: 7 frames and 353 samples; 9,953 samples for a latent."""
    dacvae, dac = CodecConfig(), CodecConfig(encoder_rates=(2, 4, 8, 8), decoder_rates=(8, 8, 4, 2), n_codebooks=9)

    def delay(network: object, config: CodecConfig, shape: tuple[int, ...]) -> int:
        return chunking.plan(network, config, shape)[1]  # pyright: ignore[reportArgumentType]

    assert delay(decode_frames, dacvae, (1, 20, 128)) == 7 * 1920 + 353
    assert delay(encode_features, dacvae, (1, 20 * 1920)) == -(-9953 // 1920)
    assert delay(encode_features, dac, (1, 20 * 512)) == -(-3733 // 512)


def test_one_window_shape_is_compiled_for_all_lengths(tiny: Codec):
    width = 8
    message = np.zeros((1, 16), np.int32)
    decode_windows(tiny.params, TINY, noise(1, 3, TINY.latent_channels), width, message)
    encoded(tiny, noise(1, 3), width)
    compiled = [windows._decode_window, windows._encode_window, watermark._mark_window]
    before = [function._cache_size() for function in compiled]  # pyright: ignore[reportAttributeAccessIssue]
    for frames in (1, 2, 7, 8, 9, 16, 57):
        decode_windows(tiny.params, TINY, noise(1, frames, TINY.latent_channels), width, message)
        encoded(tiny, noise(1, frames * HOP - 1), width)
    after = [function._cache_size() for function in compiled]  # pyright: ignore[reportAttributeAccessIssue]
    assert after == before


def test_carried_state_does_not_grow_with_the_length(tiny: Codec):
    """The memory between windows has one size, and a window's is that of one call."""
    shapes, _ = chunking._trace(decode_frames, TINY, (1, 5, TINY.latent_channels))
    longer, _ = chunking._trace(decode_frames, TINY, (1, 50, TINY.latent_channels))
    assert [shape.shape for shape in shapes] == [shape.shape for shape in longer]


def test_signals_longer_than_32_bits_of_samples_are_still_exact(tiny: Codec):
    """The network gets the distance to the ends only as far as a kernel reaches."""
    latent = noise(1, 24, TINY.latent_channels)
    stream = tiny.stream_decoder()
    stream._stream._start = 1 << 40  # as after a million hours
    audio = np.concatenate([stream.push(latent), stream.finish()], axis=1)
    late = audio[:, -10 * HOP :]  # the decoder has heard zeros before instead of nothing, so only the end is the same
    np.testing.assert_allclose(late, tiny.decode(latent)[:, -10 * HOP :], atol=EXACT)


def test_the_end_is_filled_by_reflection_and_short_audio_with_zeros():
    audio = np.arange(1.0, 6.0, dtype=np.float32)[None]
    np.testing.assert_array_equal(fill(audio, 3, reflect=True), [[4, 3, 2]])
    np.testing.assert_array_equal(fill(audio, 3, reflect=False), [[0, 0, 0]])
    np.testing.assert_array_equal(fill(audio, 0, reflect=True), np.zeros((1, 0)))
    np.testing.assert_array_equal(fill(audio[:, :4], 4, reflect=True), [[0, 0, 0, 0]])
    np.testing.assert_array_equal(fill(audio[:, :1], 7, reflect=True), np.zeros((1, 7)))


def test_noise_is_a_function_of_key_and_frame():
    key = jax.random.key(3)
    long = frame_noise(key, 2, 150, 5)
    np.testing.assert_array_equal(frame_noise(key, 2, 70, 5), long[:, :70])
    assert abs(long.mean()) < 0.1
    assert 0.9 < long.std() < 1.1
    assert len(np.unique(long)) == long.size
