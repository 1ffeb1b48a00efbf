"""Speech at another speed: its length follows, its pitch, level and transients do not."""

import numpy as np
import pytest

from echotts.audio.stretch import REACH_S, stretch, stretched

RATE = 16_000
SPEEDS = (0.5, 0.8, 1.3, 2.0)


def tone(hz, seconds=1.5, level=0.5):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def pulses(every, count):
    train = np.zeros(every * count, np.float32)
    train[every // 2 :: every] = 1.0
    return train


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("hz", [60.0, 220.0, 3000.0])
def test_a_tone_keeps_pitch_and_level_and_has_the_new_length(speed, hz):
    samples = tone(hz)
    heard = stretch(samples, RATE, speed)
    assert len(heard) == round(len(samples) / speed)
    inside = heard[RATE // 20 : -RATE // 20]
    spectrum = np.abs(np.fft.rfft(inside * np.hanning(len(inside)), 1 << 19))
    assert np.argmax(spectrum) * RATE / (1 << 19) == pytest.approx(hz, rel=0.01)
    period = RATE // 50
    levels = [np.abs(inside[start : start + period]).max() for start in range(0, len(inside) - period, period)]
    np.testing.assert_allclose(levels, 0.5, rtol=0.1)


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_voice_of_pulses_keeps_its_period(speed):
    every = RATE // 110
    heard = stretch(pulses(every, 150), RATE, speed)
    found = np.flatnonzero(heard > 0.5)
    gaps = np.diff(found[(found > RATE // 20) & (found < len(heard) - RATE // 20)])
    assert len(gaps) > 40
    assert np.mean(gaps == every) > 0.95


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.3])  # at 2.0 half of the periods are left out
def test_a_click_stays_where_it_was_in_the_speech(speed):
    samples = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.01
    samples[RATE // 2 : RATE // 2 + 16] += 0.9
    heard = stretch(samples, RATE, speed)
    assert np.argmax(heard) / RATE == pytest.approx(0.5 / speed, abs=2.5 * REACH_S)


@pytest.mark.parametrize("speed", SPEEDS)
def test_blocks_as_they_arrive_give_the_same_samples(speed):
    samples = np.random.default_rng(1).standard_normal(RATE).astype(np.float32) * np.hanning(RATE).astype(np.float32)
    whole = stretch(samples, RATE, speed)
    for width in (1000, 4001):
        blocks = (samples[start : start + width] for start in range(0, len(samples), width))
        np.testing.assert_array_equal(np.concatenate(list(stretched(blocks, len(samples), RATE, speed))), whole)


def test_output_does_not_wait_for_the_end_of_the_input():
    read = []
    blocks = (read.append(number) or tone(200.0, 0.2) for number in range(10))
    heard = stretched(blocks, 10 * len(tone(200.0, 0.2)), RATE, 0.5)
    assert len(next(heard)) > 0.3 * RATE
    assert read == [0]


def test_nothing_silence_and_speed_one_stay_what_they_are():
    samples = tone(300.0)
    assert np.array_equal(stretch(samples, RATE, 1.0), samples)
    assert not len(stretch(samples[:0], RATE, 2.0))
    assert not stretch(np.zeros(RATE, np.float32), RATE, 0.7).any()
