"""Rows of a script are spoken once: finished ones are kept, changed ones spoken again, bad ones counted."""

import json
import logging

import numpy as np
import pytest
import soundfile

from echotts.flow.options import SamplerConfig
from echotts.synthesis import script_run
from echotts.synthesis.recording import Level
from echotts.synthesis.script import read_script
from echotts.synthesis.script_run import MANIFEST, Options, Tally, run_script

LONG = "one two three. four five six, seven eight nine ten."
LINES = [
    {"text": "one", "seed": 4},
    {"text": "two", "pause": 0.5},
    {"text": LONG, "output": "long.flac"},
    {"text": "three"},
]
OPTIONS = Options(seed=1, duration=1.0, sampler=SamplerConfig(steps=2), level=Level("none"))


@pytest.fixture
def speak(tts, tmp_path, monkeypatch):
    """Runs a script of lines; gives the tally and the outputs that were written."""

    def run(lines, **changed):
        script, folder = tmp_path / "lines.jsonl", tmp_path / "out"
        script.write_text("".join(json.dumps(line) + "\n" for line in lines))
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
        rows, failures = read_script(script, folder)
        options = Options(**{**vars(OPTIONS), **changed})
        tally = run_script(tts, script, rows, failures, folder, options)
        written = [
            path.name
            for path in sorted(folder.rglob("*.*"))
            if path.suffix in (".wav", ".flac") and before.get(path) != path.stat().st_mtime_ns
        ]
        return tally, written

    return run


def manifest(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / MANIFEST).read_text().splitlines()]


def test_every_row_is_the_speech_of_its_text_and_has_its_figures_in_the_manifest(speak, tts, tmp_path):
    tally, written = speak(LINES)
    assert tally == Tally(4, 0, 0)
    assert written == ["00001.wav", "00002.wav", "00004.wav", "long.flac"]
    for line, row in zip(LINES, manifest(tmp_path), strict=True):
        said = tts.synthesize(line["text"], seed=line.get("seed", 1), duration=1.0, steps=2)
        samples, rate = soundfile.read(tmp_path / "out" / row["output"], dtype="float32")
        pause = np.zeros(round(line.get("pause", 0) * rate), np.float32)
        np.testing.assert_allclose(samples, np.clip(np.concatenate([said.samples, pause]), -1, 1), atol=1e-4)
        assert row["duration_s"] == pytest.approx(len(samples) / rate, abs=1e-3)
        assert (row["text"], row["seed"], row["voice"]) == (line["text"], line.get("seed", 1), None)
        assert row["cpu_s"] > 0
    assert not list((tmp_path / "out").glob(".*speaking"))


@pytest.mark.parametrize("duration", [1.0, "auto"])
def test_rows_spoken_at_once_are_those_spoken_alone(speak, tmp_path, duration):
    lines = [*LINES, {"text": "one", "speed": 2}, {"text": "six", "duration": 0.5}]
    speak(lines, duration=duration)
    alone = [soundfile.read(tmp_path / "out" / row["output"])[0] for row in manifest(tmp_path)]
    (tmp_path / "out" / MANIFEST).unlink()
    assert speak(lines, rows=2, duration=duration)[0] == Tally(6, 0, 0)
    for one, row in zip(alone, manifest(tmp_path), strict=True):
        np.testing.assert_allclose(soundfile.read(tmp_path / "out" / row["output"])[0], one, atol=1e-3)


def test_only_changed_missing_and_new_rows_are_spoken_again(speak, tmp_path):
    speak(LINES)
    assert speak(LINES) == (Tally(0, 4, 0), [])
    changed = [{"text": "nine", "seed": 4}, *LINES[1:], {"text": "five"}]
    (tmp_path / "out" / "long.flac").unlink()
    (tmp_path / "out" / "00004.wav").write_bytes(b"cut")
    assert speak(changed) == (Tally(4, 1, 0), ["00001.wav", "00004.wav", "00005.wav", "long.flac"])
    assert [row["line"] for row in manifest(tmp_path)] == [1, 2, 3, 4, 5]
    assert speak(changed, level=Level("peak"))[0].spoken == 5
    moved = [{"text": "five", "output": "five.wav"}, {"text": "nine", "seed": 4, "output": "00001.wav"}]
    assert speak(moved, level=Level("peak"))[0] == Tally(1, 1, 0)


def test_a_killed_run_goes_on_after_its_last_row(speak, tmp_path, monkeypatch):
    real = script_run.record_text

    def killed(tts, pieces, *given, **options):
        if pieces[0].text == "three":
            raise KeyboardInterrupt
        return real(tts, pieces, *given, **options)

    monkeypatch.setattr(script_run, "record_text", killed)
    with pytest.raises(KeyboardInterrupt):
        speak(LINES)
    with (tmp_path / "out" / MANIFEST).open("a") as file:
        file.write('{"line": 4, "outp')
    monkeypatch.setattr(script_run, "record_text", real)
    assert speak(LINES) == (Tally(1, 3, 0), ["00004.wav"])


def test_bad_rows_are_counted_said_and_noted_and_do_not_lose_the_others(speak, tmp_path, caplog):
    (tmp_path / "out" / "folder.wav").mkdir(parents=True)
    lines = [{"text": "?!"}, {"text": "one"}, {"text": "<b></b>"}, {"text": "two", "output": "folder.wav"}]
    with caplog.at_level(logging.ERROR):
        assert speak(lines)[0] == Tally(1, 0, 3)
    for line, words in (
        (1, "contains no letter or digit"),
        (3, "contains no letter or digit to speak"),
        (4, "folder.wav: cannot be written"),
    ):
        (message,) = [text for text in caplog.messages if f"lines.jsonl, line {line}: " in text]
        assert words in message
    assert ["error" in row for row in manifest(tmp_path)] == [True, False, True, True]
    assert speak(lines)[0] == Tally(0, 1, 3)


def test_the_score_of_the_candidates_is_noted(speak, tmp_path):
    chosen = []

    def choose(text, speeches, voice):
        chosen.append((text, len(speeches)))
        return 1

    speak(LINES[:1], candidates=2, choose=choose, score=lambda: {"word_errors": 3})
    assert chosen == [("one", 2)]
    assert manifest(tmp_path)[0]["word_errors"] == 3


def test_only_one_process_speaks_to_a_folder(speak, tmp_path):
    with script_run._Manifest(tmp_path / "out"), pytest.raises(BlockingIOError, match="another process speaks"):
        speak(LINES)
