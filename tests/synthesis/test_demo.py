"""Texts for the built-in demo model, and its errors for other texts."""

import numpy as np
import pytest

from echotts import EchoTTS
from echotts.data.prepare.demo import corpus_path
from echotts.evaluation.clips import read_clips
from echotts.synthesis.demo import demo_text


def test_the_english_model_is_built_in_and_reads_numbers_and_signs():
    tts = EchoTTS.load("english")
    assert tts._texts.readable("It cost $4 in 1987.") == "It cost four dollars in nineteen eighty-seven."
    assert (tts.codec.codec_id, tts.config.latent_channels) == ("speech", 23)
    assert tts.predict_duration("Hello, this is a test.") == pytest.approx(1.5, abs=1.0)


def test_digits_are_written_out():
    assert demo_text("42") == "four two"
    assert demo_text("Seven, three; 1") == "seven three one"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, this is a test.", "speaks only the digits zero to nine, not 'hello'.*--checkpoint"),
        ("four and two", "not 'and'"),
        ("4 \u00b2", "not '\u00b2'"),
        ("...", "contains no digits"),
    ],
)
def test_other_texts_are_rejected_with_an_explanation(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        demo_text(text)
    assert "\n" not in str(caught.value)


def test_the_built_in_predictor_is_within_a_tenth_on_recordings_that_it_was_not_trained_on():
    tts = EchoTTS.load()
    clips = read_clips(corpus_path(), "heldout")[::5]
    pool = read_clips(corpus_path(), "reference", 8)
    voices = {clip.speaker: tts.encode_reference((clip.samples, 16_000)) for clip in pool}
    errors = [tts.predict_duration(one.text, voices[one.speaker]) / (len(one.samples) / 16_000) - 1 for one in clips]
    assert len(voices) == 5
    assert np.abs(errors).mean() < 0.04
    assert np.abs(errors).max() < 0.2
