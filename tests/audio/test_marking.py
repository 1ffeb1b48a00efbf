"""The watermark of speech: the same in blocks, where the speech is, well below it."""

import numpy as np
import pytest

from echotts.audio.marking import MESSAGE, Marker, marked, marked_blocks
from tests.audio.signals import RATE, speech


@pytest.mark.parametrize("rate", [8000, 22050, 44100])  # 22,050 Hz has frames of 110.25 samples
@pytest.mark.parametrize("cuts", [[], [1, 2, 2, 400], [4000, 12345]])
def test_blocks_of_any_size_equal_the_whole(rate, cuts):
    clip = speech(2.0, rate)
    blocks = list(marked_blocks(np.split(clip, cuts), Marker(rate, MESSAGE)))
    assert all(map(len, blocks))
    np.testing.assert_allclose(np.concatenate(blocks), marked(clip, rate, MESSAGE), atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 79, 80, 81, 1000])
def test_the_length_stays_also_of_short_and_empty_pieces(count):
    clip = speech(1.0)[:count]
    assert marked(clip, RATE, MESSAGE).shape == clip.shape
    np.testing.assert_array_equal(marked(clip, RATE, None), clip)


def test_a_later_piece_continues_the_pattern_of_the_recording():
    clip, start = speech(3.0), 12345
    whole, later = marked(clip, RATE, MESSAGE), marked(clip[start:], RATE, MESSAGE, start)
    edge = RATE // 100  # the whole signal has a frame here that reads samples before the start
    np.testing.assert_allclose(later[edge:], whole[start + edge :], atol=1e-6)


def test_the_change_is_far_below_the_speech_in_its_band_and_next_to_nothing_elsewhere():
    clip, levels_db = speech(10.0, 24000), []
    spectra = [np.abs(np.fft.rfft(one)) ** 2 for one in (marked(clip, 24000, MESSAGE) - clip, clip)]
    for low, high in ((300, 3500), (4000, 12000)):
        change, sound = (power[10 * low : 10 * high].sum() for power in spectra)
        levels_db.append(10 * np.log10(change / sound))
    assert -27 < levels_db[0] < -22 and levels_db[1] < -40


def test_the_change_scales_with_the_speech_and_silence_stays_silence():
    clip = speech(1.0)
    np.testing.assert_allclose(marked(0.01 * clip, RATE, MESSAGE), 0.01 * marked(clip, RATE, MESSAGE), atol=1e-8)
    assert not marked(np.zeros(RATE, np.float32), RATE, MESSAGE).any()


def test_a_message_that_is_not_16_bits_is_an_error():
    with pytest.raises(ValueError, match="give 16 numbers, 0 or 1"):
        Marker(RATE, (1, 0))
