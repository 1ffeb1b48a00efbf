"""The recogniser for any text: Whisper on a few clips, normalisation of texts, errors in one line."""

import re
import sys

import numpy as np
import pytest

from echotts.data.prepare.demo import corpus_path
from echotts.data.teachers import load_teacher
from echotts.evaluation.asr import Digits, Whisper, count_errors, load_recogniser
from echotts.evaluation.clips import RATE_HZ, read_clips

README = "Hello, this is a test of the Echo text to speech system."


@pytest.fixture(scope="module")
def tiny() -> Whisper:
    recogniser = load_recogniser("tiny.en")
    assert isinstance(recogniser, Whisper)
    return recogniser


@pytest.fixture(scope="module")
def sentence() -> tuple[np.ndarray, int]:
    return load_teacher("kokoro").say(README, "jf_gongitsune", 1.0)


def test_whisper_base_joined_from_its_wheels_transcribes_a_sentence_exactly(sentence) -> None:
    recogniser = load_recogniser("base")
    heard = recogniser.normalise(recogniser.recognise(*sentence))
    assert heard == recogniser.normalise(README) == "hello this is a test of the echo text to speech system"


def test_whisper_is_deterministic_and_independent_of_level_and_rate(tiny: Whisper, sentence) -> None:
    samples, rate = sentence
    first = tiny.recognise(samples, rate)
    assert tiny.recognise(samples, rate) == first
    assert tiny.normalise(tiny.recognise(0.1 * np.repeat(samples, 2), 2 * rate)) == tiny.normalise(first)


def test_digits_transcribed_by_whisper_are_compared_digit_by_digit(tiny: Whisper) -> None:
    clips = [clip for clip in read_clips(corpus_path(), "heldout", 8) if clip.speaker == "us"]
    found = [count_errors(tiny.normalise(c.text), tiny.normalise(tiny.recognise(c.samples, RATE_HZ))) for c in clips]
    assert sum(one.words for one in found) == sum(len(clip.text.split()) for clip in clips)
    assert sum(one.words_wrong for one in found) <= 0.3 * sum(one.words for one in found)


def test_noise_and_silence_are_not_transcribed_as_the_sentence(tiny: Whisper) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE_HZ).astype(np.float32)
    wrong = count_errors(tiny.normalise(README), tiny.normalise(tiny.recognise(noise, RATE_HZ)))
    assert wrong.words_wrong >= 0.9 * wrong.words
    assert tiny.recognise(np.zeros(0, np.float32), RATE_HZ) == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It's twenty-one dogs.", "it is 21 dogs"),
        ("One, two, three!", "1 2 3"),
        ("In nineteen eighty-seven", "in 1987"),
        ("The colour won\u2019t change", "the color will not change"),
        ("(laughs) hello", "Hello"),
    ],
)
def test_texts_that_differ_only_in_spelling_are_equal(tiny: Whisper, one: str, other: str) -> None:
    assert tiny.normalise(one) == tiny.normalise(other)
    assert not re.search(r"[\d.,!?-]", tiny.normalise(one))


def test_the_digits_recogniser_rejects_other_words_before_recognition() -> None:
    with pytest.raises(ValueError, match=r"has 'hello': pocketsphinx recognises digits only .*--asr base"):
        Digits().normalise("one hello")


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("huge", ValueError, "unknown recogniser 'huge': choose digits, base or tiny.en"),
        ("EMPTY", FileNotFoundError, "has no model.bin"),
    ],
)
def test_an_unknown_recogniser_is_an_error_in_one_line(name: str, error: type[Exception], words: str, tmp_path) -> None:
    with pytest.raises(error, match=re.escape(words)):
        load_recogniser(str(tmp_path) if name == "EMPTY" else name)


def test_the_error_for_an_unreachable_hub_names_the_installed_recognisers(monkeypatch) -> None:
    import huggingface_hub

    def fail(*_args, **_kwargs):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match=r"base.en: .*no route to host.*base and tiny.en"):
        load_recogniser("Systran/faster-whisper-base.en")


def test_missing_packages_are_one_line_with_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(ModuleNotFoundError, match=r"faster-whisper: pip install 'echotts\[asr\]'"):
        load_recogniser("base")
