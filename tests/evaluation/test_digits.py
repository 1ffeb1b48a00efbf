"""Recognition of digits in recordings with known texts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.data.prepare.demo import corpus_path
from echotts.evaluation.asr import count_errors
from echotts.evaluation.clips import RATE_HZ, read_clips
from echotts.evaluation.digits import DIGITS, DigitRecogniser

pytest.importorskip("pocketsphinx", reason="needs the extra eval")

words = st.lists(st.sampled_from(DIGITS[:3]), max_size=6)


@pytest.fixture(scope="module")
def recogniser():
    return DigitRecogniser()


@pytest.fixture(scope="module")
def clips():
    return read_clips(corpus_path(), "heldout", 20)


def errors(recogniser, clips, change):
    heard = [" ".join(recogniser.recognise(change(clip.samples), RATE_HZ)) for clip in clips]
    return sum(count_errors(clip.text, text).words_wrong for clip, text in zip(clips, heard, strict=True))


def test_recordings_are_recognised_nearly_without_error(recogniser, clips):
    assert errors(recogniser, clips, lambda samples: samples) <= 0.05 * sum(len(clip.text.split()) for clip in clips)


def test_recordings_of_one_and_two_digits_are_also_recognised(recogniser):
    short = [clip for clip in read_clips(corpus_path(), "heldout") if len(clip.text.split()) <= 2]
    assert errors(recogniser, short, lambda samples: samples) <= 0.05 * sum(len(clip.text.split()) for clip in short)


def test_silence_around_the_speech_and_its_level_change_nothing(recogniser, clips):
    heard = [recogniser.recognise(clip.samples, RATE_HZ) for clip in clips]
    around = [np.pad(0.1 * clip.samples, (1600, 4800)) for clip in clips]
    assert [recogniser.recognise(samples, RATE_HZ) for samples in around] == heard


def test_recognition_does_not_depend_on_earlier_recordings(recogniser, clips):
    first = recogniser.recognise(clips[0].samples, RATE_HZ)
    recogniser.recognise(np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32), RATE_HZ)
    assert recogniser.recognise(clips[0].samples, RATE_HZ) == first


def test_noise_is_recognised_as_wrong_words_and_silence_as_none(recogniser, clips):
    rng = np.random.default_rng(1)
    wrong = errors(recogniser, clips, lambda samples: rng.standard_normal(len(samples)).astype(np.float32))
    assert wrong >= 0.9 * sum(len(clip.text.split()) for clip in clips)
    assert recogniser.recognise(np.zeros(RATE_HZ, np.float32), RATE_HZ) == []
    assert recogniser.recognise(np.zeros(0, np.float32), RATE_HZ) == []


def test_word_errors_count_the_three_kinds_of_mistake():
    def wrong(heard):
        return count_errors("one two three four", heard).words_wrong

    assert wrong("one two three four") == 0
    assert wrong("one two nine four") == 1
    assert wrong("one three four") == 1
    assert wrong("one two two three four") == 1
    assert wrong("") == 4


@settings(deadline=None, max_examples=50)
@given(words, words)
def test_word_errors_are_symmetric_and_bounded_by_the_longer_text(said, heard):
    there = count_errors(" ".join(said), " ".join(heard))
    back = count_errors(" ".join(heard), " ".join(said))
    assert there.words == len(said)
    assert there.words_wrong == back.words_wrong <= max(len(said), len(heard))
    assert there.words_wrong >= abs(len(said) - len(heard))
