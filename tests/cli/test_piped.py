"""`echotts speak --output -`: speech into a pipe while it is made, and text from a pipe as it arrives."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echotts import synthesis
from echotts.cli import piped
from echotts.cli.app import run
from echotts.cli.inference import main
from echotts.synthesis import Speech
from tests.tiny_speaker import LinearCodec, tiny_tts

ROOT = Path(__file__).parents[2]
RATE = LinearCodec.sample_rate
LIVE = ("--output", "-", "--steps", "2", "--seed", "3")


@pytest.fixture(scope="module")
def tts():
    return tiny_tts()


@pytest.fixture
def call(tts, monkeypatch, capfdbinary):
    """Runs the command on the tiny model; gives (exit code, bytes of standard output, standard error)."""
    monkeypatch.setattr(synthesis.EchoTTS, "load", lambda *_, **__: tts)
    monkeypatch.setattr("echotts.synthesis.batch.SLOW_COMPILE_S", 600.0)

    def run_it(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as stop:
            run(main, [str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return stop.value.code, out, err.decode()

    return run_it


def test_standard_output_has_only_a_wav_that_players_read(call, tts):
    code, out, err = call("--text", "one two", *LIVE, "--normalise", "none")
    assert code == 0
    assert err.startswith("standard output: ")
    assert err.count("\n") == 1
    samples, rate = soundfile.read(io.BytesIO(out), dtype="float32")
    assert rate == RATE
    assert soundfile.SoundFile(io.BytesIO(out)).comment.endswith("model: unnamed, step 7")
    np.testing.assert_allclose(samples, tts.synthesize("one two", seed=3, steps=2).samples, atol=1e-4)


def test_raw_samples_are_the_wav_without_its_header(call):
    wav = call("--text", "one two", *LIVE)[1]
    assert call("--text", "one two", *LIVE, "--pipe", "raw")[1] == wav[wav.index(b"data") + 8 :]


def test_text_from_standard_input_is_spoken_like_that_of_a_file(call, tmp_path):
    text = "one two three. four five six, seven eight nine ten."
    piped_in = call("--text", "-", *LIVE, stdin=text.encode())
    (tmp_path / "text.txt").write_text(text)
    assert piped_in[0] == 0
    assert piped_in[1] == call("--text_file", tmp_path / "text.txt", *LIVE)[1]
    assert call("--text", "-", "--output", tmp_path / "a.wav", "--steps", 2, stdin=text.encode())[0] == 0
    assert call("--text", text, "--output", tmp_path / "b.wav", "--steps", 2)[0] == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_markup_in_text_from_standard_input_is_left_out_which_is_said_once(call):
    code, out, err = call("--text", "-", *LIVE, stdin="<p>one *two*.</p>\n\n**three**. 😀\n\n<br>\n\nfour.".encode())
    assert (code, err.count("left out")) == (0, 1)
    assert out == call("--text", "-", *LIVE, stdin=b"one two.\n\nthree.\n\nfour.")[1]


def test_wrong_calls_and_inputs_are_one_line_and_write_nothing(call, tmp_path):
    for arguments, stdin, code, words in [
        (("--text", "one", *LIVE, "--normalise", "peak"), b"", 2, "--normalise peak needs the whole speech"),
        (("--text", "one", *LIVE, "--save_latents", tmp_path / "z.npy"), b"", 2, "needs a file as --output"),
        (("--text", "-", *LIVE, "--normalise_text"), b"one", 2, "--normalise_text needs the whole text"),
        (("--text", "-", *LIVE), b"", 1, "the text contains no letter or digit"),
        (("--text", "-", *LIVE), b"?! ...\n", 1, "the text contains no letter or digit"),
        (("--text", "-", *LIVE), b"one\xff", 1, "standard input: not UTF-8 at byte 4"),
        (("--text", "-", *LIVE), b"one \xe2\x82", 1, "standard input: not UTF-8 at byte 5"),
        (("--text", "-", "--output", tmp_path / "a.wav"), b" \n", 2, "standard input: there is no text"),
    ]:
        done, out, err = call(*arguments, stdin=stdin)
        assert (done, out, err.count("\n")) == (code, b"", 1), err
        assert words in err
    assert not list(tmp_path.iterdir())


def test_a_terminal_is_refused_in_one_line_before_anything_is_loaded():
    ours, theirs = os.openpty()
    arguments = [sys.executable, "-m", "echotts", "speak", "--text", "one", "--output", "-"]
    done = subprocess.run(arguments, stdout=theirs, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(theirs)
    os.close(ours)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "standard output is a terminal: pipe it into a player" in done.stderr


READER_LEAVES = """
import sys
from echotts.cli.app import run
from echotts.cli import inference
from echotts import synthesis
from tests.tiny_speaker import tiny_tts
synthesis.EchoTTS.load = lambda *_, **__: tiny_tts()
run(inference.main, ["--text", "-", "--output", "-", "--steps", "1"])
"""


def test_a_reader_that_leaves_ends_the_command_in_silence_and_with_success():
    """The first sentence is heard while the input is still open; then the reader leaves."""
    command = [sys.executable, "-c", READER_LEAVES]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"one two three.\n")
        process.stdin.flush()
        assert process.stdout.read(4) == b"RIFF"
        process.stdout.close()
        process.stdin.write(b"four five six.\n" * 20)
        process.stdin.close()
        assert process.wait(timeout=120) == 0
        assert b"Error" not in process.stderr.read()


def test_samples_that_are_not_finite_are_refused(capfdbinary):
    block = Speech(np.array([0.0, np.nan], np.float32), RATE, np.zeros((1, 8), np.float32))
    with pytest.raises(ValueError, match="samples from 0 on are not finite"):
        piped.write([block], "wav", "clip")
    assert capfdbinary.readouterr().out == b""
