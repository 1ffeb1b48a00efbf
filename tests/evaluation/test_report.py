"""The table: counts, controls and choices, with an evaluator that needs no extra."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.evaluation import report
from echotts.evaluation.clips import Clip, Task, choose_references
from echotts.evaluation.page import write_report


def clip(number, text, speaker):
    return Clip(f"clip_{number}", text, speaker, np.full(1600, number, np.float32))


def task(number, text, speaker):
    return Task(f"clip_{number}", text, clip(number + 100, "anything", speaker), clip(number, text, speaker))


TASKS = [task(0, "one two three", "us"), task(1, "four five six seven", "f2"), task(2, "eight nine zero", "us")]


class FakeEvaluator(report.Evaluator):
    """A recogniser that returns the text in the table for a recording's level; else nothing."""

    voices = ("us", "f2")  # pyright: ignore[reportAssignmentType]

    def __init__(self):
        self.recogniser = self

    def normalise(self, text):
        return text

    def _told(self, samples):
        level = samples[0] if len(samples) else None
        return next((one for one in TASKS if level in (one.recording.samples[0], one.reference.samples[0])), None)

    def recognise(self, recordings):
        return [told.text if (told := self._told(samples)) else "" for samples, _ in recordings]

    def embed(self, recordings):
        axes = {"us": [1.0, 0.0], "f2": [0.0, 1.0]}
        told = [self._told(samples) for samples, _ in recordings]
        return np.array([axes[one.speaker] if one else [0.0, 0.0] for one in told], np.float32)

    def nearest(self, embedding):
        return ("us" if embedding[0] else "f2") if embedding.any() else None


RIGHT = [(one.recording.samples, 16000) for one in TASKS]


def test_the_table_counts_each_system_against_the_same_tasks():
    wrong = [RIGHT[0], RIGHT[0], RIGHT[2]]
    scores = {one.system: one for one in report.measure({"demo": RIGHT}, wrong, TASKS, FakeEvaluator())}
    assert list(scores) == ["demo", "recordings", "codec round trip", "shuffled text and voice", "noise"]
    demo, trip = scores["demo"], scores["codec round trip"]
    assert (demo.errors, demo.words, demo.matched, demo.whole, demo.similarity) == (0, 10, 3, 3, 1.0)
    assert (trip.errors, trip.matched, trip.failures) == (4, 2, 1)
    assert trip.word_error_rate == 0.4
    assert trip.word_error_rate_without_failures == 0.0
    assert scores["shuffled text and voice"].whole == 0
    assert (scores["noise"].word_error_rate, scores["noise"].voice_match) == (1.0, 0.0)
    assert scores["noise"].similarity is None


def test_texts_of_one_and_two_words_have_a_row_of_their_own_where_there_are_longer_ones():
    scores = report.measure({"demo": RIGHT}, RIGHT, TASKS, FakeEvaluator())
    assert len(report.table_rows(scores)) == len(scores)
    score = scores[0]
    short = replace(score.results[0], errors=report.count_errors("four two", "four two two"))
    rows = report.table_rows([replace(score, results=(*score.results, short)), scores[-1]])
    assert [(row[0], row[3]) for row in rows[:2]] == [("demo", "1/12"), ("demo, texts of 1 or 2 words", "1/2")]
    assert rows[2][0] == "noise" and len(rows) == 3
    kept = report.to_report([replace(score, results=(*score.results, short))], {})["scores"]
    assert [one["word_error_rate"] for one in kept] == [round(1 / 12, 4), 0.5]


def test_character_errors_distinguish_a_near_miss_from_another_word():
    near = report.count_errors("eight nine", "eighty nine")
    assert (near.words_wrong, near.words, near.characters_wrong, near.characters) == (1, 2, 1, 10)


def test_two_systems_are_compared_on_the_same_clips():
    wrong = [RIGHT[0], RIGHT[0], RIGHT[2]]
    scores = report.measure({"first": RIGHT, "second": wrong}, RIGHT, TASKS, FakeEvaluator())
    assert [one.system for one in scores[:2]] == ["first", "second"]
    change, (low, high) = report.difference(scores[0], scores[1])
    assert change == 0.4
    assert low == 0.0 and 0.4 < high <= 1.0
    assert report.difference(scores[0], scores[0]) == (0.0, (0.0, 0.0))


def test_an_interval_holds_the_figure_and_narrows_with_more_clips():
    few = report.measure({"demo": [RIGHT[0], RIGHT[0], RIGHT[2]]}, RIGHT, TASKS, FakeEvaluator())[0].results
    rate = lambda results: sum(one.errors.words_wrong for one in results) / sum(one.errors.words for one in results)  # noqa: E731
    narrow, wide = report.interval(few * 50, rate), report.interval(few, rate)
    assert wide[0] <= narrow[0] <= 0.4 <= narrow[1] <= wide[1]
    assert narrow[1] - narrow[0] < 0.4 * (wide[1] - wide[0])


def test_a_recording_that_is_the_reference_itself_has_no_similarity():
    reference = clip(0, "one two three", "us")
    alone = Task("clip_0", "four five", reference, reference)
    scores = {one.system: one for one in report.measure({"demo": RIGHT[:1]}, RIGHT[:1], [alone], FakeEvaluator())}
    assert scores["recordings"].similarity is None
    assert scores["recordings"].word_error_rate == 0.0  # judged by what the reference says, not by the task's text
    assert scores["demo"].similarity == 1.0


def test_an_unknown_voice_is_an_error():
    with pytest.raises(ValueError, match="clip_9: the voice 'new' has no enrolment clip"):
        report.measure({"demo": []}, [], [task(9, "one", "new")], FakeEvaluator())


def test_references_take_turns_within_the_speaker_and_are_never_the_clip_itself():
    clips = [one.recording for one in TASKS]
    pool = [clip(10, "one", "us"), clip(11, "two", "f2"), clip(12, "three", "us")]
    chosen = [one.key for one in choose_references([*clips, clips[0]], pool)]
    assert chosen == ["clip_10", "clip_11", "clip_12", "clip_10"]
    assert [one.key for one in choose_references([clips[0], clips[2]], clips)] == ["clip_2", "clip_0"]
    with pytest.raises(ValueError, match="clip_9: no reference clip of the speaker 'new'"):
        choose_references([clip(9, "one", "new")], pool)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 60))
def test_shuffling_moves_every_place_and_loses_none(count):
    order = report.shuffled(count)
    assert sorted(order) == list(range(count))
    assert all(place != other for place, other in enumerate(order))


def test_the_text_table_is_aligned_and_carries_the_counts():
    scores = report.measure({"demo": [RIGHT[0], RIGHT[0], RIGHT[2]]}, RIGHT, TASKS, FakeEvaluator())
    lines = report.format_table(scores).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(figure in lines[1] for figure in ("40.0%", "4/10", "0.0% (1 excluded)", "67%", "2/3"))
    kept = report.to_report(scores, {"seed": 3})
    assert (kept["seed"], kept["scores"][0]["word_error_rate"], kept["scores"][0]["failures"]) == (3, 0.4, 1)


def test_the_report_has_a_line_and_a_player_for_each_clip_and_shows_text_as_text(tmp_path):
    system = "run/<b>1"
    said = {system: [RIGHT[0], (np.zeros(0, np.float32), 16000), RIGHT[2]]}
    tasks = [replace(TASKS[0], key="../up"), *TASKS[1:]]
    scores = report.measure(said, RIGHT, tasks, FakeEvaluator())
    write_report(tmp_path, scores, tasks, said, RIGHT, {"asr": "ears"})
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 5 * len(TASKS)
    assert (lines[1]["system"], lines[1]["heard"], lines[1]["words_wrong"]) == (system, "", 4)
    page = (tmp_path / "index.html").read_text()
    assert "<b>1" not in page and "run/&lt;b&gt;1" in page
    places = re.findall(r'src="([^"]+)"', page)
    assert len(places) == 4 * len(TASKS) - 1  # nothing to play where nothing was said
    tags = {place.split("/")[1]: soundfile.SoundFile(tmp_path / place).comment for place in places}
    assert [name for name, tag in tags.items() if "synthetic: yes" in tag] == [
        name for name in tags if name.startswith("run")
    ]
    assert all((tmp_path / place).resolve().is_relative_to(tmp_path.resolve()) for place in places)
    assert all((tmp_path / place).is_file() for place in places)
    assert page.index("four five six seven") < page.index("eight nine zero")  # the worst first
