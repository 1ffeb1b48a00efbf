"""`echotts speak --script` and `--candidates`: exit codes, messages, and what reaches the model."""

import json

import pytest

from echotts import synthesis
from echotts.cli.app import run
from echotts.cli.inference import main
from echotts.evaluation import ranking
from echotts.evaluation.ranking import Ranking
from tests.tiny_speaker import tiny_tts


@pytest.fixture(scope="module")
def tts():
    return tiny_tts()


@pytest.fixture
def call(tts, monkeypatch, capfd, tmp_path):
    """Runs the command on the tiny model in a folder of its own; gives (exit code, standard output, error)."""
    monkeypatch.setattr(synthesis.EchoTTS, "load", lambda *_, **__: tts)
    monkeypatch.setattr("echotts.synthesis.batch.SLOW_COMPILE_S", 600.0)
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments):
        with pytest.raises(SystemExit) as stop:
            run(main, [str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return stop.value.code, out, err

    return run_it


def test_a_script_is_spoken_to_a_folder_and_a_bad_row_makes_the_exit_code_1(call, tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"text": "one"}\n{"text": "?!"}\n{"text": "two", "output": "b.ogg"}\n')
    usual = ("--script", "lines.jsonl", "--output", "out", "--steps", 2, "--rows", 1)
    code, out, err = call(*usual)
    assert code == 1
    assert out.startswith("out/manifest.jsonl: 2 rows spoken in ")
    assert "0 were finished, 1 failed" in out
    assert "lines.jsonl, line 2: the text '?!' contains no letter or digit\n" in err
    assert sorted(path.name for path in (tmp_path / "out").glob("*")) == ["00001.wav", "b.ogg", "manifest.jsonl"]
    (tmp_path / "lines.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "output": "b.ogg"}\n')
    code, out, err = call(*usual)
    assert (code, "0 rows spoken" in out, "2 were finished, 0 failed" in out) == (0, True, True)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("--script lines.jsonl", 2, "--output out.wav: give the folder for the files of a --script"),
        ("--script lines.jsonl --output -", 2, "--output -: give the folder"),
        ("--script lines.jsonl --text one --output out", 2, "give either --text or --text_file or --script"),
        ("--script lines.jsonl --output out --save_latents z.npy", 2, "are for one text, not for a --script"),
        ("--script lines.jsonl --output out --rows 0", 2, "--rows 0: give a number from 1 to 64"),
        ("--text one --candidates 65", 2, "--candidates 65: give a number from 1 to 64"),
        ("--text one --candidates 2 --output -", 2, "--candidates needs a file as --output"),
        ("--script lines.jsonl --output out", 1, "line 2: the output a.wav is that of line 1, too"),
        ("--script none.csv --output out", 1, "none.csv"),
    ],
)
def test_wrong_calls_are_one_line_and_write_nothing(call, tmp_path, line, code, words):
    (tmp_path / "lines.jsonl").write_text('{"text": "one", "output": "a.wav"}\n' * 2)
    done, out, err = call(*line.split())
    assert (done, out, err.count("\n")) == (code, "", 1), err
    assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["lines.jsonl"]


def test_candidates_are_ranked_and_the_first_is_the_speech_without_candidates(call, tts, tmp_path, monkeypatch):
    seen = []

    class First(Ranking):
        def __call__(self, text, speeches, voice):
            seen.append((text, len(speeches), self._language))
            self.score.word_errors = 0
            return 0

    def load(decode, rate, language):
        first = First(None, None, decode, rate)
        first._language = language
        return first

    monkeypatch.setattr(ranking, "load_ranking", load)
    assert call("--text", "one two", "--steps", 2, "--output", "a.wav")[0] == 0
    assert call("--text", "one two", "--steps", 2, "--output", "b.wav", "--candidates", 2, "--language", "de")[0] == 0
    assert seen == [("one two", 2, "de")]
    (tmp_path / "lines.jsonl").write_text('{"text": "one two"}\n')
    assert call("--script", "lines.jsonl", "--output", "out", "--steps", 2, "--candidates", 2)[0] == 0
    row = json.loads((tmp_path / "out" / "manifest.jsonl").read_text())
    assert (row["candidates"], row["word_errors"], row["similarity"]) == (2, 0, None)
