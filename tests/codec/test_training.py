"""Training a codec: losses that know what is heard, exact resume, a decoder alone."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from echotts.codec import CodecConfig
from echotts.codec.backbone import init_params
from echotts.codec.losses import kl_loss, magnitudes, mel_filters, reconstruction_loss
from echotts.codec.training import CodecTraining, fold, train_codec, unfold

RATE = 8000
SMALL = CodecConfig(
    encoder_dim=4,
    encoder_rates=(4, 8),
    latent_dim=8,
    decoder_dim=16,
    decoder_rates=(8, 4),
    codebook_dim=4,
    sample_rate=RATE,
)
TRAINING = CodecTraining(
    codec=SMALL, steps=6, batch_size=2, frames=40, learning_rate=3e-3, warmup_steps=1, save_every=3, log_every=1
)


def tone(hertz: float, seconds: float = 0.3) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


CLIPS = [tone(hertz) for hertz in (200, 330, 470)] + [(tone(250) * 32767).astype(np.int16)]


def train(run_dir: Path, start=None, **changes):
    lines: list[dict[str, float]] = []
    params = train_codec(dataclasses.replace(TRAINING, **changes), CLIPS, run_dir, lines.append, start)
    return params, lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    return train(tmp_path_factory.mktemp("whole"))


def test_training_brings_the_loss_down(whole):
    losses = [line["loss/total"] for line in whole[1]]
    assert [line["step"] for line in whole[1]] == [1, 2, 3, 4, 5, 6]
    assert losses[-1] < 0.9 * losses[0]


class KilledError(Exception):
    pass


def test_a_killed_training_goes_on_as_if_it_had_never_stopped(whole, tmp_path: Path):
    def killer(line: dict[str, float]) -> None:
        if line["step"] == 5:  # the last save is of step 3
            raise KilledError

    with pytest.raises(KilledError):
        train_codec(TRAINING, CLIPS, tmp_path, killer)
    params, lines = train(tmp_path)
    assert [line["step"] for line in lines] == [4, 5, 6]
    assert [line["loss/total"] for line in lines] == [line["loss/total"] for line in whole[1][3:]]
    jax.tree.map(np.testing.assert_array_equal, params, whole[0])


def test_another_configuration_is_not_resumed(tmp_path: Path):
    train(tmp_path, steps=1)
    with pytest.raises(ValueError, match=r"learning_rate 0\.003 -> 0\.1.*: use a new run folder"):
        train(tmp_path, learning_rate=0.1)


def test_a_decoder_trained_alone_leaves_the_latents_as_they_are_bit_by_bit(tmp_path: Path):
    start = init_params(SMALL, jax.random.key(7))
    params, _ = train(tmp_path, start, decoder_only=True, steps=2)
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], start["encoder"])
    jax.tree.map(np.testing.assert_array_equal, params["bottleneck"]["in"], start["bottleneck"]["in"])
    assert not np.array_equal(params["bottleneck"]["out"]["kernel"], start["bottleneck"]["out"]["kernel"])
    assert not np.array_equal(params["decoder"]["head"]["kernel"], start["decoder"]["head"]["kernel"])


def test_a_decoder_alone_needs_a_codec_to_start_from(tmp_path: Path):
    with pytest.raises(ValueError, match="name it with --init_from"):
        train(tmp_path, decoder_only=True)


def test_without_clips_nothing_is_trained(tmp_path: Path):
    with pytest.raises(ValueError, match="no clips to train the codec on"):
        train_codec(TRAINING, [], tmp_path)


def test_folding_is_the_inverse_of_unfolding():
    params = init_params(SMALL, jax.random.key(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), fold(unfold(params)), params)


def test_magnitudes_are_those_of_the_fourier_transform():
    audio = np.stack([tone(500), tone(1234)])
    frames = np.lib.stride_tricks.sliding_window_view(audio, 256, axis=1)[:, ::64]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    expected = np.abs(np.fft.rfft(frames * hann, axis=-1)) * 4 / 256
    found = np.asarray(magnitudes(jnp.asarray(audio), 256))
    np.testing.assert_allclose(found, expected[:, : found.shape[1]], atol=1e-5)
    assert expected.shape[1] - found.shape[1] <= 1


def test_each_mel_band_sums_to_one_and_they_follow_each_other():
    filters = mel_filters(512, 48, 16000)
    np.testing.assert_allclose(filters.sum(0), 1, rtol=1e-6)
    assert (np.diff(np.argmax(filters, axis=0)) >= 0).all()


def test_the_loss_is_zero_for_equal_audio_and_deaf_below_its_floor():
    audio = jnp.stack([tone(500), tone(900)])
    loss, parts = reconstruction_loss(audio, audio, RATE, 10.0)
    assert float(loss) == pytest.approx(0, abs=1e-4)
    quiet = audio + 1e-5 * jax.random.normal(jax.random.key(0), audio.shape)  # -100 dB
    assert float(reconstruction_loss(quiet, audio, RATE, 10.0)[0]) < 0.02
    other, other_parts = reconstruction_loss(audio[::-1], audio, RATE, 10.0)
    assert float(other) > 1
    assert float(other) == pytest.approx(
        float(other_parts["mel"] + other_parts["stft"] + 10 * other_parts["wave"]), rel=1e-5
    )
    assert set(parts) == {"mel", "stft", "wave"}


def test_the_divergence_is_zero_for_the_unit_normal():
    zeros, ones = jnp.zeros((2, 3, 4)), jnp.ones((2, 3, 4))
    assert float(kl_loss(zeros, ones)) == pytest.approx(0)
    assert float(kl_loss(ones, ones)) == pytest.approx(4)
