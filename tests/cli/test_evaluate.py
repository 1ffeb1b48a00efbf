"""`echotts eval`: the table is printed and saved, including controls, for an untrained model."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
import soundfile

from echotts import synthesis
from echotts.checkpoint.facts import Limits
from echotts.cli import evaluate
from echotts.cli.app import run
from echotts.evaluation import clips
from echotts.synthesis.synthesizer import Synthesizer
from tests.tiny_speaker import CONFIG, FACTS, LinearCodec, random_params

needs_extra = pytest.mark.skipif(
    not (importlib.util.find_spec("pocketsphinx") and importlib.util.find_spec("resemblyzer")), reason="extra eval"
)


@pytest.fixture
def call(monkeypatch, capfd):
    facts = dataclasses.replace(FACTS, buckets=Limits(frames=32, tokens=48, reference_frames=16))
    tts = synthesis.EchoTTS(Synthesizer(random_params(), CONFIG, facts, LinearCodec()))
    monkeypatch.setattr(synthesis.EchoTTS, "load", lambda *_, **__: tts)
    monkeypatch.setattr(clips, "ENROLMENT_CLIPS", 10)

    def run_it(*arguments):
        with pytest.raises(SystemExit) as stop:
            run(evaluate.main, [str(argument) for argument in arguments])
        return stop.value.code, *capfd.readouterr()

    return run_it


@needs_extra
def test_the_table_has_every_row_and_the_json_the_same_figures(call, tmp_path):
    code, out, err = call(
        *(
            "--count",
            4,
            "--steps",
            1,
            "--rows",
            2,
            "--output",
            tmp_path / "table.json",
            "--save_audio",
            tmp_path / "said",
        )
    )
    assert code == 0, err
    rows = {line[:24].strip(): line for line in out.splitlines()}
    assert {"demo model", "recordings", "codec round trip", "shuffled text and voice", "noise"} <= rows.keys()
    kept = json.loads((tmp_path / "table.json").read_text())
    scores = {score["system"]: score for score in kept["scores"]}
    assert (kept["codec"], kept["sampler"]["steps"], kept["seed"]) == ("linear", 1, 0)
    assert scores["recordings"]["word_error_rate"] <= 0.1
    assert scores["noise"]["word_error_rate"] > 0.5
    assert f"{scores['recordings']['word_errors']}/{scores['recordings']['words']}" in rows["recordings"]
    said = sorted(path.name for path in (tmp_path / "said").iterdir())
    assert len(said) == 4
    assert soundfile.info(tmp_path / "said" / said[0]).samplerate == LinearCodec.sample_rate


@needs_extra
def test_two_checkpoints_stand_side_by_side_with_their_difference_and_a_page(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    code, out, err = call("--count", 2, "--steps", 1, "--against", "other", "--report", tmp_path / "page")
    assert code == 0, err
    assert "other against demo model: word errors +0.0% (+0.0% to +0.0%)" in out  # the fixture loads the same twice
    kept = json.loads((tmp_path / "page" / "table.json").read_text())
    assert [score["system"] for score in kept["scores"][:2]] == ["demo model", "other"]
    assert (kept["asr"], kept["against"]["checkpoint"]) == ("digits (pocketsphinx)", "other")
    assert len((tmp_path / "page" / "results.jsonl").read_text().splitlines()) == 6 * 2
    assert (tmp_path / "page" / "index.html").is_file()


@needs_extra
def test_whisper_is_used_if_selected_and_evaluates_other_texts_than_digits(call, tmp_path):
    samples = np.zeros(16000, np.float32)
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", samples + number / 9, 16000)
    rows = [{"audio": f"{n}.wav", "text": f"Good day {n}.", "speaker": "a"} for n in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ("--data", tmp_path, "--count", 1, "--steps", 1, "--output", tmp_path / "table.json")
    code, _, err = call(*flags, "--asr", "tiny.en")
    assert code == 0, err
    kept = json.loads((tmp_path / "table.json").read_text())
    assert (kept["asr"], kept["scores"][0]["words"]) == ("Whisper tiny.en", 3)
    code, _, err = call(*flags)
    assert code == 1 and "pocketsphinx recognises digits only" in err


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("--asr huge", 1, "unknown recogniser 'huge'"),
        ("--count 0", 2, "--count 0 must be at least 1"),
        ("--seed -3", 2, "--seed -3 must not be negative"),
        ("--data /no/such/folder", 1, "/no/such/folder: no such file or folder"),
    ],
)
def test_bad_input_is_one_line(call, line, code, words):
    result = call(*line.split())
    assert result[:2] == (code, "")
    assert words in result[2]
    assert result[2].count("\n") == 1
