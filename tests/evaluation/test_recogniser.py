"""Word error rate: what the recogniser hears in recordings whose words are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.data.prepare.demo import corpus_path
from echotts.evaluation.clips import RATE_HZ, read_clips
from echotts.evaluation.recogniser import DIGITS, DigitRecogniser, word_errors

pytest.importorskip("pocketsphinx", reason="the meter is the extra eval")

words = st.lists(st.sampled_from(DIGITS[:3]), max_size=6)


@pytest.fixture(scope="module")
def recogniser():
    return DigitRecogniser()


@pytest.fixture(scope="module")
def clips():
    return read_clips(corpus_path(), "heldout", 20)


def errors(recogniser, clips, change):
    return sum(word_errors(clip.words, recogniser.hear(change(clip.samples), RATE_HZ)) for clip in clips)


def test_recordings_are_heard_nearly_without_error(recogniser, clips):
    assert errors(recogniser, clips, lambda samples: samples) <= 0.05 * sum(len(clip.words) for clip in clips)


def test_silence_around_the_speech_and_its_level_change_nothing(recogniser, clips):
    heard = [recogniser.hear(clip.samples, RATE_HZ) for clip in clips]
    around = [np.pad(0.1 * clip.samples, (1600, 4800)) for clip in clips]
    assert [recogniser.hear(samples, RATE_HZ) for samples in around] == heard


def test_what_was_heard_before_changes_nothing(recogniser, clips):
    first = recogniser.hear(clips[0].samples, RATE_HZ)
    recogniser.hear(np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32), RATE_HZ)
    assert recogniser.hear(clips[0].samples, RATE_HZ) == first


def test_noise_says_nothing_right_and_silence_says_nothing(recogniser, clips):
    rng = np.random.default_rng(1)
    wrong = errors(recogniser, clips, lambda samples: rng.standard_normal(len(samples)).astype(np.float32))
    assert wrong >= 0.9 * sum(len(clip.words) for clip in clips)
    assert recogniser.hear(np.zeros(RATE_HZ, np.float32), RATE_HZ) == []
    assert recogniser.hear(np.zeros(0, np.float32), RATE_HZ) == []


def test_word_errors_count_the_three_kinds_of_mistake():
    said = ["one", "two", "three", "four"]
    assert word_errors(said, said) == 0
    assert word_errors(said, ["one", "two", "nine", "four"]) == 1
    assert word_errors(said, ["one", "three", "four"]) == 1
    assert word_errors(said, ["one", "two", "two", "three", "four"]) == 1
    assert word_errors(said, []) == 4


@settings(deadline=None, max_examples=50)
@given(words, words, words)
def test_word_errors_are_a_distance(first, second, third):
    assert word_errors(first, second) == word_errors(second, first)
    assert (word_errors(first, second) == 0) == (first == second)
    assert word_errors(first, third) <= word_errors(first, second) + word_errors(second, third)


def test_clips_of_other_words_and_missing_splits_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.json: no such file"):
        read_clips(tmp_path, "heldout")
    with pytest.raises(ValueError, match="lists no shard of the split 'test'"):
        read_clips(corpus_path(), "test")
