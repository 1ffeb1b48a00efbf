"""Audio in blocks: loudness equal to pyloudnorm, resampling equal to a single pass, files with many channels."""

import os
import resource
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.codec.sound import SILENT_LUFS, LoudnessMeter, Resampler, SoundFile, write_sound
from tests.codec.conftest import noise


def speech_like(channels: int, samples: int, seed: int = 0) -> np.ndarray:
    """Noise that swells and falls silent, so that the gates have something to leave out."""
    level = np.maximum(0, np.sin(np.arange(samples) / 5000)) ** 2
    return (0.2 * level * noise(channels, samples, seed=seed)).astype(np.float32)


def measured(audio: np.ndarray, rate: int, cuts: list[int]) -> LoudnessMeter:
    meter = LoudnessMeter(rate, len(audio))
    for block in np.split(audio, cuts, axis=1):
        meter.push(block)
    return meter


@settings(max_examples=15, deadline=None)
@given(
    rate=st.sampled_from((8000, 16000, 44100)),
    channels=st.integers(1, 5),
    cuts=st.lists(st.integers(0, 90000), max_size=4),
)
def test_loudness_in_blocks_equals_pyloudnorm_of_the_whole_signal(rate: int, channels: int, cuts: list[int]):
    audio = speech_like(channels, 90000, seed=channels)
    wanted = pyloudnorm.Meter(rate).integrated_loudness(audio.T.astype(np.float64))
    meter = measured(audio, rate, sorted(cuts))
    assert abs(meter.loudness() - wanted) < 0.05
    assert meter.peak == np.abs(audio).max()


def test_silence_has_the_loudness_of_the_gate_and_short_sound_is_measured_repeated():
    assert measured(np.zeros((2, 50000), np.float32), 16000, []).loudness() == SILENT_LUFS
    assert measured(np.zeros((1, 10), np.float32), 16000, []).loudness() == SILENT_LUFS
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(64000) / 16000, dtype=np.float32)[None]
    short, long = measured(tone[:, :2000], 16000, []), measured(tone, 16000, [])
    assert abs(short.loudness() - long.loudness()) < 0.5


@pytest.mark.parametrize("rates", [(44100, 16000), (8000, 48000), (192000, 44100)])
def test_resampling_in_blocks_equals_a_single_pass(rates: tuple[int, int]):
    audio = speech_like(2, 30000)
    resampler = Resampler(*rates, 2)
    pieces = [resampler.push(block) for block in np.split(audio, [1, 500, 20000], axis=1)]
    joined = np.concatenate([*pieces, resampler.finish()], axis=1)
    np.testing.assert_allclose(joined, soxr.resample(audio.T, *rates).T, atol=1e-5)


def test_eight_channels_are_written_and_read_and_loud_samples_are_clipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    audio = speech_like(8, 9000)
    audio[3, 10] = 2.0
    path = tmp_path / "sub" / "eight.flac"
    assert write_sound(path, iter(np.split(audio, [4000], axis=1)), 192000, 8) == 9000
    assert "the peak is 2.00" in caplog.text
    sound = SoundFile(path)
    assert (sound.sample_rate, sound.channels, sound.samples) == (192000, 8, 9000)
    read = np.concatenate(list(sound.blocks()), axis=1)
    np.testing.assert_allclose(read, np.clip(audio, -1, 1), atol=1e-4)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_a_full_disk_is_one_line_and_leaves_nothing_and_names_need_not_be_utf8(suffix: str, tmp_path: Path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfc" + suffix.encode()))
    audio = noise(1, 200_000).astype(np.float32)
    assert write_sound(path, [0.1 * audio], 16000, 1) == 200_000
    path.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(OSError, match=r"cannot be written .*is the disk full\?"):
            write_sound(path, [0.1 * audio], 16000, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_wrong_sound_is_one_line(tmp_path: Path):
    broken = np.zeros(100, np.float32)
    broken[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "empty.wav", broken[:0], 8000)
    cases = {
        "1 samples from sample 0 on are not finite": lambda: list(SoundFile(tmp_path / "nan.wav").blocks()),
        "empty": lambda: list(SoundFile(tmp_path / "empty.wav").blocks()),
        "MP3 cannot hold 16000 Hz, 8 channels": lambda: write_sound(tmp_path / "x.mp3", [speech_like(8, 9)], 16000, 8),
        "no samples": lambda: write_sound(tmp_path / "x.wav", [], 16000, 1),
        "unknown suffix": lambda: write_sound(tmp_path / "x.aif", [], 16000, 1),
    }
    for words, call in cases.items():
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*x.*"))


def test_an_mp3_of_several_channels_has_the_bit_rate_that_is_asked_for(tmp_path: Path):
    sound = speech_like(2, 4 * 48000)
    for rate in (64, 128):
        write_sound(tmp_path / "a.mp3", [sound], 48000, 2, mp3_rate=rate)
        assert (tmp_path / "a.mp3").stat().st_size * 8 / 4000 == pytest.approx(rate, rel=0.08)
