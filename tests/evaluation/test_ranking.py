"""Candidates are ranked by wrong words, then by similarity, then by how usual their duration is."""

import importlib.util

import numpy as np
import pytest

from echotts.evaluation import ranking
from echotts.evaluation.asr import count_errors
from echotts.evaluation.ranking import Ranking, Score, load_ranking
from echotts.evaluation.voices import VoiceEncoder
from echotts.synthesis.candidates import choose_by_duration
from echotts.synthesis.speech import Speech

RATE = 100
VOICE = np.ones((5, 8), np.float32)


def candidate(seconds, mark=0.0):
    return Speech(np.full(round(seconds * RATE), mark, np.float32), RATE, np.zeros((1, 8), np.float32))


class Ear:
    """Hears the text that the first sample stands for."""

    name = "ear"
    texts = ("one two", "one six", "three four")

    def recognise(self, samples, rate):
        return self.texts[round(float(samples[0]))]

    def normalise(self, text):
        return text


class Encoder(VoiceEncoder):
    """The similarity to a voice of 0.4 is 1 + 0.4 times the first digit behind the point of the first sample."""

    def __init__(self):
        pass

    def embed(self, recordings):
        return np.array([[round(10 * float(samples[0])) % 10 / 10, 1.0] for samples, _ in recordings])


def decode(latents):
    return np.full((1, 10), 0.0, np.float32)


def test_without_anything_the_most_usual_duration_is_chosen():
    speeches = [candidate(seconds) for seconds in (1.0, 9.0, 1.2, 1.1, 0.2)]
    assert choose_by_duration("one", speeches, None) == 3
    assert Ranking(None, None, decode, RATE)("one", speeches, None) == 3
    assert choose_by_duration("one", [candidate(1.0), candidate(2.0)], None) == 0


def test_wrong_words_count_more_than_similarity_and_that_more_than_duration():
    pytest.importorskip("jiwer")
    by_ear = Ranking(Ear(), None, decode, RATE)
    assert by_ear("one two", [candidate(1.0, 2), candidate(1.0, 1), candidate(9.0, 0)], VOICE) == 2
    assert by_ear.score == Score(word_errors=0, words=2)
    by_both = Ranking(Ear(), Encoder(), lambda latents: np.full((1, 10), 0.4, np.float32), RATE)
    assert by_both("one two", [candidate(1.0, 0.1), candidate(9.0, 0.4), candidate(1.0, 1.4)], VOICE) == 1
    assert by_both.score.similarity == pytest.approx(1.16)


def test_scores_add_up_until_they_are_reset():
    pytest.importorskip("jiwer")
    by_ear = Ranking(Ear(), None, decode, RATE)
    by_ear("one two", [candidate(1.0, 1)] * 2, None)
    by_ear("one two", [candidate(1.0, 2)] * 2, None)
    assert by_ear.reset() == Score(word_errors=count_errors("one two", "one six").words_wrong + 2, words=4)
    assert by_ear.reset() == Score()


def test_without_a_reference_similarity_is_left_out():
    ranked = Ranking(None, Encoder(), decode, RATE)
    assert ranked("one", [candidate(1.0), candidate(1.0, 0.4)], None) == 0
    assert ranked.score == Score()


def test_what_is_not_installed_is_said_and_left_out(monkeypatch, caplog):
    def absent(*_):
        raise ModuleNotFoundError("no weights")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    monkeypatch.setattr(ranking, "find_weights", absent)
    ranked = load_ranking(decode, RATE)
    assert ranked("one", [candidate(3.0), candidate(1.0), candidate(1.1)], VOICE) == 2
    assert ["not ranked by their words: pip install 'echotts[asr,eval]'" in text for text in caplog.messages] == [
        True,
        False,
    ]
    assert "not ranked by similarity: no weights" in caplog.text
