"""Detection of the watermark: after cuts and conversions, never without a mark, with an honest probability."""

import numpy as np
import pytest

from echotts.audio import read_audio, resample, write_audio
from echotts.audio.detecting import RATE_HZ, Detector, best_message, cell_values
from echotts.audio.marking import BANDS, MESSAGE, marked
from tests.audio.signals import RATE, noise, speech

SENT = "".join(map(str, MESSAGE))


def detect(samples, rate=RATE, block=None):
    samples = resample(samples, rate, RATE_HZ)[None]
    detector, block = Detector(1), block or samples.shape[1]
    for start in range(0, samples.shape[1], block):
        detector.push(samples[:, start : start + block])
    return detector.finish()


@pytest.mark.parametrize("first", [0, 7, 12345])
def test_three_seconds_from_any_sample_on_carry_the_message(first):
    clip = marked(speech(5.0), RATE, MESSAGE)[first : first + 3 * RATE]
    found = detect(0.05 * clip)
    assert found.message == SENT and found.false_alarm < 1e-9


def test_any_message_is_read():
    for message in np.random.default_rng(0).integers(0, 2, (4, 16)):
        assert detect(marked(speech(4.0), RATE, message.tolist())).message == "".join(map(str, message))


@pytest.mark.parametrize(("suffix", "rate"), [(".mp3", 24000), (".ogg", 22050), (".wav", 44100)])
def test_the_mark_survives_a_file_of_another_rate_and_noise(tmp_path, suffix, rate):
    clip = resample(marked(speech(5.0), RATE, MESSAGE), RATE, rate)
    dirty = clip + 0.05 * clip.std() * noise(len(clip), level=1.0)
    write_audio(tmp_path / f"a{suffix}", dirty, rate, mp3_rate=64)
    assert detect(read_audio(tmp_path / f"a{suffix}", RATE_HZ), RATE_HZ).message == SENT


@pytest.mark.parametrize("sound", [speech(12.0), noise(5 * RATE), np.zeros(RATE, np.float32), noise(3)])
def test_nothing_is_found_without_a_mark(sound):
    found = detect(sound)
    assert found.message is None and found.false_alarm > 1e-3


def test_a_marked_part_of_a_long_recording_is_found_and_blocks_do_not_matter():
    clip = np.resize(speech(12.0), 35 * RATE)
    clip[12 * RATE : 19 * RATE] = marked(clip[12 * RATE : 19 * RATE], RATE, MESSAGE)
    found = detect(clip)
    assert found.message == SENT
    assert detect(clip, block=1234) == found


def test_a_mark_too_weak_for_ten_seconds_is_found_in_the_whole_recording():
    clip = marked(np.resize(speech(12.0, RATE_HZ), 60 * RATE_HZ), RATE_HZ, MESSAGE)
    dirty = clip + 0.7 * clip.std() * noise(len(clip), level=1.0)
    assert detect(dirty[: 10 * RATE_HZ], RATE_HZ).message is None
    assert detect(dirty, RATE_HZ).message == SENT


def test_one_of_several_channels_may_carry_the_mark():
    detector, clip = Detector(2), speech(5.0, RATE_HZ)
    detector.push(np.stack([clip[::-1], marked(clip, RATE_HZ, MESSAGE)]))
    assert detector.finish().message == SENT


def test_scores_of_unmarked_recordings_keep_the_stated_bound():
    clip, scores = speech(12.0, RATE_HZ), []
    for seed in range(8):
        sound = np.roll(clip, 5000 * seed) + 0.01 * np.random.default_rng(seed).standard_normal(len(clip))
        values = cell_values(sound.astype(np.float32)[: 8 * 1024 * 10])
        scores.append(best_message(values.reshape(-1, 1024, BANDS).sum(axis=0))[0])
    bound = np.sqrt(2 * np.log(1024 * 65536 * len(scores) / 0.001))  # exceeded with a probability of 0.001 at most
    assert min(scores) > 4 and max(scores) < bound
