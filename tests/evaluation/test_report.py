"""The table: counts, controls and choices, with a meter that needs no extra."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.evaluation import report
from echotts.evaluation.clips import Clip


def clip(number, text, speaker):
    return Clip(f"clip_{number}", text, speaker, np.full(1600, number, np.float32))


CLIPS = [clip(0, "one two three", "us"), clip(1, "four five six seven", "f2"), clip(2, "eight nine zero", "us")]


class Ears(report.Meter):
    """Hears what the table says a recording of this level holds; anything else is nothing."""

    voices = ("us", "f2")  # pyright: ignore[reportAssignmentType]

    def __init__(self):
        pass

    def listen(self, recordings):
        told = [next((c for c in CLIPS if (samples == c.samples[0]).all()), None) for samples, _ in recordings]
        return [c.words if c else [] for c in told], [c.speaker if c else None for c in told]


def test_the_table_counts_each_system_against_the_same_clips():
    right = [(one.samples, 16000) for one in CLIPS]
    wrong = [right[0], right[0], right[2]]
    scores = {one.system: one for one in report.measure("demo", right, wrong, CLIPS, Ears())}
    assert list(scores) == ["demo", "recordings", "codec round trip", "shuffled text and voice", "noise"]
    assert (scores["demo"].errors, scores["demo"].words, scores["demo"].matched, scores["demo"].whole) == (0, 10, 3, 3)
    assert (scores["codec round trip"].errors, scores["codec round trip"].matched) == (4, 2)
    assert scores["shuffled text and voice"].whole == 0
    assert (scores["noise"].word_error_rate, scores["noise"].voice_match) == (1.0, 0.0)


def test_a_voice_that_is_not_known_is_said():
    with pytest.raises(ValueError, match="clip_9: the voice 'new' has no clip"):
        report.measure("demo", [], [], [clip(9, "one", "new")], Ears())


def test_references_take_turns_within_the_speaker():
    pool = [clip(10, "one", "us"), clip(11, "two", "f2"), clip(12, "three", "us")]
    assert [one.key for one in report.choose_references([*CLIPS, CLIPS[0]], pool)] == [
        "clip_10",
        "clip_11",
        "clip_12",
        "clip_10",
    ]
    with pytest.raises(ValueError, match="clip_9: no reference clip of the speaker 'new'"):
        report.choose_references([clip(9, "one", "new")], pool)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 60))
def test_shuffling_moves_every_place_and_loses_none(count):
    order = report.shuffled(count)
    assert sorted(order) == list(range(count))
    assert all(place != other for place, other in enumerate(order))


def test_the_text_table_is_aligned_and_carries_the_counts():
    scores = [report.Score("demo", 8, 100, 5, 9, 10), report.Score("recordings", 0, 100, 10, 10, 10)]
    lines = report.format_table(scores).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(figure in lines[1] for figure in ("8.0%", "8/100", "90%", "9/10"))
    assert report.to_report(scores, {"seed": 3})["scores"][0]["word_error_rate"] == 0.08
