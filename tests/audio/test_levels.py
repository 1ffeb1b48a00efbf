"""Levels of sound."""

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts import audio
from tests.audio.signals import RATE, noise, tone


def test_loudness_reaches_the_target_and_the_peak_stays_below_one():
    quiet = noise(level=0.01)
    assert audio.measure_loudness(audio.loudness_normalise(quiet, RATE), RATE) == pytest.approx(-16.0, abs=0.05)
    spike = noise(level=0.01)
    spike[100] = 0.9
    loud = audio.loudness_normalise(spike, RATE, -10.0)
    assert np.abs(loud).max() == pytest.approx(1.0)


def test_a_clip_shorter_than_a_loudness_block_is_measured_like_the_long_one():
    long = tone(2.0)
    assert audio.measure_loudness(long[:1600], RATE) == pytest.approx(audio.measure_loudness(long, RATE), abs=0.3)


@pytest.mark.parametrize("strategy", audio.OUTPUT_STRATEGIES)
@pytest.mark.parametrize("samples", [0, 1, 100, RATE])
def test_silence_survives_every_strategy(strategy, samples):
    silent = np.zeros(samples, np.float32)
    assert np.array_equal(audio.normalise_output(silent, RATE, strategy), silent)
    assert np.array_equal(audio.loudness_normalise(silent, RATE), silent)


@settings(deadline=None, max_examples=20)
@given(level=st.floats(1e-3, 4.0), strategy=st.sampled_from(audio.OUTPUT_STRATEGIES))
def test_output_levels_are_as_documented(level, strategy):
    loud = audio.normalise_output(tone(level=level), RATE, strategy)
    assert loud.dtype == np.float32 and np.isfinite(loud).all()
    if strategy == "peak":
        assert np.abs(loud).max() == pytest.approx(audio.HEADROOM_PEAK, rel=1e-5)
    elif strategy == "rms":
        assert np.sqrt(np.mean(loud**2)) == pytest.approx(audio.OUTPUT_RMS, rel=1e-4)
    elif strategy == "clip":
        assert np.abs(loud).max() == pytest.approx(min(level, audio.HEADROOM_PEAK), rel=1e-2)
    elif strategy == "loudness" and level > 0.01:
        assert audio.measure_loudness(loud, RATE) == pytest.approx(audio.OUTPUT_LOUDNESS_LUFS, abs=0.1)
    elif strategy == "none":
        assert np.array_equal(loud, tone(level=level))


def test_an_unknown_strategy_lists_the_known_ones():
    with pytest.raises(ValueError, match="'loud': choose one of peak, rms, clip, loudness, none"):
        audio.normalise_output(tone(), RATE, "loud")


def test_shapes_are_checked_while_tests_run() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="samples"):
        audio.resample(np.zeros((2, 8), np.float32), 8000, 16000)
