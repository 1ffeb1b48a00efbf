"""`echotts eval`: the table is printed and kept, controls and all, for a model that says nothing yet."""

import importlib.util
import json

import pytest
import soundfile

from echotts import synthesis
from echotts.cli import evaluate
from echotts.cli.app import run
from tests.tiny_speaker import CONFIG, METADATA, LinearCodec, random_params

needs_extra = pytest.mark.skipif(
    not (importlib.util.find_spec("pocketsphinx") and importlib.util.find_spec("resemblyzer")), reason="extra eval"
)


@pytest.fixture
def call(monkeypatch, capfd):
    limits = {"frames": 32, "tokens": 48, "reference_frames": 16}
    tts = synthesis.EchoTTS(random_params(), CONFIG, METADATA | {"buckets": limits}, LinearCodec())
    monkeypatch.setattr(synthesis.EchoTTS, "load", lambda *_, **__: tts)
    monkeypatch.setattr(evaluate, "ENROLMENT_CLIPS", 10)

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
    assert (kept["codec"], kept["steps"], kept["seed"]) == ("linear", 1, 0)
    assert scores["recordings"]["word_error_rate"] <= 0.1
    assert scores["noise"]["word_error_rate"] > 0.5
    assert f"{scores['recordings']['word_errors']}/{scores['recordings']['words']}" in rows["recordings"]
    said = sorted(path.name for path in (tmp_path / "said").iterdir())
    assert len(said) == 4
    assert soundfile.info(tmp_path / "said" / said[0]).samplerate == LinearCodec.sample_rate


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("--count 0", 2, "--count 0: at least 1 is needed"),
        ("--seed -3", 2, "--seed -3: it must not be negative"),
        ("--data /no/such/folder", 1, "/no/such/folder/dataset.json: no such file"),
    ],
)
def test_bad_input_is_one_line(call, line, code, words):
    result = call(*line.split())
    assert result[:2] == (code, "")
    assert words in result[2]
    assert result[2].count("\n") == 1
