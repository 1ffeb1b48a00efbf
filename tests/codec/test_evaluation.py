"""Round-trip measures: zero where nothing is lost, and the order that ears would give."""

import numpy as np
import pytest

from echotts.codec import Codec
from echotts.codec.evaluation import round_trip, si_sdr_db, spectral_distances, summarise
from tests.codec.conftest import noise

RATE = 16000
TIME = np.arange(RATE) / RATE
TONE = (0.4 * np.sin(2 * np.pi * 440 * TIME) + 0.1 * np.sin(2 * np.pi * 1500 * TIME)).astype(np.float32)


def test_equal_sounds_are_at_distance_zero():
    assert spectral_distances(TONE, TONE, RATE) == (0, 0)
    assert si_sdr_db(TONE, TONE) > 100


def test_a_gain_moves_the_mel_distance_by_its_logarithm_and_leaves_si_sdr():
    audio = 0.1 * noise(RATE)
    mel, convergence = spectral_distances(audio, audio / 2, RATE)
    np.testing.assert_allclose(mel, np.log10(2), rtol=1e-3)
    np.testing.assert_allclose(convergence, 0.5, rtol=1e-5)
    assert si_sdr_db(audio, audio / 2) > 100


def test_noise_at_a_known_level_gives_its_ratio():
    disturbed = TONE + np.float32(0.1 * TONE.std()) * noise(RATE)
    np.testing.assert_allclose(si_sdr_db(TONE, disturbed), 20, atol=0.3)
    worse = spectral_distances(TONE, TONE + np.float32(0.3 * TONE.std()) * noise(RATE), RATE)
    assert worse > spectral_distances(TONE, disturbed, RATE)
    np.testing.assert_allclose(spectral_distances(TONE, 0 * TONE, RATE)[1], 1)


def test_silence_is_compared_without_dividing_by_zero():
    silence = np.zeros(RATE, np.float32)
    assert spectral_distances(silence, silence, RATE) == (0, 0)
    assert np.isfinite(si_sdr_db(silence, silence))


def test_long_clips_are_measured_in_blocks(monkeypatch: pytest.MonkeyPatch):
    whole = spectral_distances(TONE, 0.9 * TONE, RATE)
    monkeypatch.setattr("echotts.codec.evaluation._BLOCK_FRAMES", 7)
    np.testing.assert_allclose(spectral_distances(TONE, 0.9 * TONE, RATE), whole, rtol=1e-6)


def test_a_round_trip_is_measured_and_summarised(tiny: Codec):
    results = [round_trip(tiny, 0.2 * noise(2000, seed=seed)) for seed in range(2)]
    summary = summarise(results)
    assert (summary["clips"], summary["seconds"]) == (2, 0.5)
    assert summary["mel_distance"] == np.mean([result.mel_distance for result in results])
    assert summary["encode_per_s"] > 0
    with pytest.raises(ValueError, match="too short"):
        round_trip(tiny, noise(1000))
    with pytest.raises(ValueError, match="no clips"):
        summarise([])
