"""The end of speech, detected by latents and by energy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.synthesis import speech
from echotts.synthesis.speech import energy_end, find_end, reference_pace, silent_window
from tests.synthesis.conftest import HOP, RATE, SILENCE, voice
from tests.tiny_speaker import CHANNELS


def test_the_silent_tail_is_cropped_by_its_distance_to_silence():
    rng = np.random.default_rng(0)
    latents = SILENCE + 0.05 * rng.standard_normal((40, CHANNELS)).astype(np.float32)
    latents[3:20] += 2 * rng.standard_normal((17, CHANNELS)).astype(np.float32)
    latents[30] += 5.0  # a click in the tail
    assert find_end(latents, SILENCE, 8) == 20 + speech.KEPT_TAIL_FRAMES


def test_a_pause_is_not_an_end_and_speech_to_the_last_frame_is_not_cropped():
    rng = np.random.default_rng(0)
    loud = SILENCE + 2 * rng.standard_normal((30, CHANNELS)).astype(np.float32)
    assert find_end(loud, SILENCE, 8) is None
    loud[10:16] = SILENCE
    assert find_end(loud, SILENCE, 8) is None
    loud[28:] = SILENCE  # shorter than the window, but nothing follows
    assert find_end(loud, SILENCE, 8) == 28 + speech.KEPT_TAIL_FRAMES
    assert find_end(np.repeat(SILENCE, 30, axis=0), SILENCE, 8) is None


@settings(deadline=None, max_examples=30)
@given(spoken=st.integers(1, 60), silent=st.integers(0, 60), window=st.integers(1, 20), seed=st.integers(0, 99))
def test_the_end_is_found_wherever_it_is(spoken, silent, window, seed):
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.float32([-2, 2]), (spoken, CHANNELS))
    latents = np.concatenate([SILENCE + signs, np.repeat(SILENCE, silent, axis=0)])
    end = find_end(latents, SILENCE, window)
    if spoken >= speech.LOUD_FRAMES and silent:
        assert end == min(spoken + speech.KEPT_TAIL_FRAMES, len(latents))
    elif not silent:
        assert end is None


def test_energy_finds_the_end_where_the_latents_do_not():
    samples = np.concatenate([voice(0.4), np.zeros(RATE, np.float32)])
    assert energy_end(samples, RATE, HOP) == 10 + speech.KEPT_TAIL_FRAMES
    assert energy_end(np.zeros(10 * HOP, np.float32), RATE, HOP) == 10


def test_windows_of_silence_scale_with_the_model():
    assert silent_window(768) == 20
    assert silent_window(64) == 8
    assert silent_window(4) == 2


def syllables(hz, seconds=4.0):
    """Latents whose distance to silence, zeros, rises and falls so many times a second."""
    loudness = 2.0 + 0.5 * np.cos(2 * np.pi * hz * np.arange(round(seconds * 25)) / 25.0)
    return (loudness[:, None] * np.ones((1, 3))).astype(np.float32)


def test_a_slow_reference_takes_longer_and_a_fast_one_less_up_to_a_limit():
    silence = np.zeros((1, 3), np.float32)
    assert reference_pace(syllables(5.0), silence, 25.0) == pytest.approx(1.0, abs=0.05)
    assert reference_pace(syllables(3.5), silence, 25.0) == pytest.approx((5.0 / 3.5) ** 0.5, abs=0.05)
    assert reference_pace(syllables(7.0), silence, 25.0) == pytest.approx((5.0 / 7.0) ** 0.5, abs=0.05)
    assert reference_pace(syllables(1.0), silence, 25.0) == 1.4
    quiet = np.concatenate([syllables(3.5), np.zeros((200, 3), np.float32)])
    assert reference_pace(quiet, silence, 25.0) == pytest.approx((5.0 / 3.5) ** 0.5, abs=0.05)
    for nothing in (syllables(3.0, 0.5), silence):
        assert reference_pace(nothing, silence, 25.0) == 1.0
