"""Crops: a function of (seed, step, row), read from parts of files, not silent or clipped."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echotts.codec import CodecConfig
from echotts.codec.training.config import CodecTraining, CropConfig, LossConfig
from echotts.codec.training.crops import Clips, Crops, choose_clips, fault_of, vary
from echotts.config import RunConfig
from echotts.data.prepare.clips import open_clips

RATE = 8000
TRAINING = CodecTraining(
    codec=CodecConfig(encoder_rates=(4, 8), decoder_rates=(8, 4), decoder_dim=16, sample_rate=RATE),
    batch_size=4,
    frames=40,
    loss=LossConfig(mel_scales=((64, 8),), stft_windows=(), feature=0.0, adversarial=0.0),
    crops=CropConfig(level_spread_db=10.0, speed_spread=0.1, noise_share=0.5, room_share=0.5, narrow_share=0.0),
)
VOICE = (0.2 * np.sin(2 * np.pi * 440 * np.arange(3 * 16000) / 16000)).astype(np.float32)


def training(**crops) -> CodecTraining:
    return dataclasses.replace(TRAINING, crops=dataclasses.replace(TRAINING.crops, **crops))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A long clip at 16 kHz, one that is too short, one that is no sound."""
    soundfile.write(tmp_path / "a.wav", VOICE, 16000)
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "b.flac", VOICE[:1000], 16000)
    (tmp_path / "c.wav").write_bytes(b"no sound")
    return tmp_path


def crops(clips: Clips, given: CodecTraining, rows: range = range(4), **options) -> Crops:
    return Crops(clips, given, rows, **options)


def test_a_batch_is_the_same_whoever_reads_it_and_another_at_each_step_and_seed(folder: Path):
    clips = open_clips(str(folder))
    whole = crops(clips, TRAINING)
    batch = whole.batch(7)
    assert batch.shape == (4, TRAINING.crop_samples) and batch.dtype == np.float32
    np.testing.assert_array_equal(crops(clips, TRAINING, range(2, 4)).batch(7), batch[2:])
    assert not np.array_equal(whole.batch(8), batch)
    other = dataclasses.replace(TRAINING, run=RunConfig(seed=1))
    assert not np.array_equal(crops(clips, other).batch(7), batch)


def test_clips_are_resampled_brought_to_a_level_and_padded_where_they_are_short(folder: Path):
    clips = open_clips(str(folder))
    plain = training(level_spread_db=0.0, speed_spread=0.0, noise_share=0.0, room_share=0.0, loudness=None)
    for row in crops(clips, plain).batch(0):
        if row[-100:].any():
            spectrum = np.abs(np.fft.rfft(row))
            assert abs(spectrum.argmax() * RATE / len(row) - 440) < 5
            np.testing.assert_allclose(np.abs(row).max(), 0.2, rtol=0.1)
        else:
            np.testing.assert_array_equal(row[510:], 0)  # 1000 samples at 16 kHz
    loud = training(level_spread_db=0.0, noise_share=0.0, room_share=0.0, loudness=-10.0)
    assert np.abs(crops(clips, loud).batch(0)).max() > 0.3


def test_silent_and_clipped_crops_are_drawn_again_and_counted(tmp_path: Path):
    soundfile.write(tmp_path / "good.wav", VOICE, 16000)
    soundfile.write(tmp_path / "silent.wav", 0 * VOICE, 16000)
    soundfile.write(tmp_path / "clipped.wav", np.clip(20 * VOICE, -1, 1), 16000)
    found = crops(open_clips(str(tmp_path)), training(room_share=0.0, noise_share=0.0))
    batches = np.concatenate([found.batch(step) for step in range(4)])
    assert (np.sqrt(np.mean(batches**2, axis=1)) > 0.01).all()
    assert found.rejected["silent"] and found.rejected["clipped"]


def test_rejection_causes_are_named():
    settings = CropConfig()
    tone = VOICE[:4000]
    assert fault_of(tone, settings) is None
    assert fault_of(1e-4 * tone, settings) == "silent"
    assert fault_of(np.clip(50 * tone, -1, 1), settings) == "clipped"


def test_a_varied_crop_stays_within_full_scale_and_keeps_its_length():
    settings = CropConfig(loudness=-5.0, noise_share=1.0, room_share=1.0, narrow_share=1.0)
    varied = vary(VOICE[:9000], 16000, settings, np.random.default_rng(0))
    assert varied.shape == (9000,) and np.isfinite(varied).all() and 0.3 < np.abs(varied).max() <= 1
    silence = np.zeros(9000, np.float32)
    np.testing.assert_array_equal(vary(silence, 16000, CropConfig(), np.random.default_rng(0)), silence)


class Names:
    """Clips without sound."""

    def __init__(self, count: int):
        self.seconds = np.ones(count)

    def name(self, clip: int) -> str:
        return f"{clip}.wav"

    def read(self, clip: int, start_s: float, limit_s: float, sample_rate: int) -> np.ndarray:
        raise ValueError("none")


def test_clips_that_are_held_out_are_never_trained_on():
    train, held = (set(choose_clips(Names(300), 0.02, kind).tolist()) for kind in (False, True))
    assert len(held) == 6 and not train & held and len(train | held) == 300
    assert not len(choose_clips(Names(19), 0.02, True))


def test_clips_that_cannot_be_read_give_silence_and_are_counted():
    found = crops(Names(3), TRAINING, range(1))
    np.testing.assert_array_equal(found.batch(0), 0)
    assert found.rejected["unreadable"] >= 8


def test_a_folder_without_sound_is_refused(tmp_path: Path):
    (tmp_path / "c.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match="no readable recordings"):
        open_clips(str(tmp_path))
