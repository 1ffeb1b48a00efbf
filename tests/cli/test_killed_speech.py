"""A command of `echotts speak` that is killed (SIGKILL) continues with the bytes of one that is not interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DIGITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero"]
SENTENCES = [" ".join(DIGITS[(start + step) % 10] for step in range(5)) for start in range(10)]
TIMEOUT_S = 300.0

pytestmark = pytest.mark.slow


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "echotts", "speak", "--steps", "4", *arguments]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(folder: Path, *arguments: str) -> str:
    process = begin(folder, *arguments)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    return out + err


def kill_after(folder: Path, journal: Path, lines: int, *arguments: str) -> None:
    """Kills the command once the journal has so many lines; it may not have finished by then."""
    process, deadline = begin(folder, *arguments), time.monotonic() + TIMEOUT_S
    while not journal.is_file() or journal.read_text().count("\n") < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_long_text_continues_with_the_bytes_of_an_uninterrupted_one(tmp_path):
    (tmp_path / "text.txt").write_text(". ".join(SENTENCES) + ".")
    finish(tmp_path, "--text_file", "text.txt", "--output", "whole.wav")
    given = ("--text_file", "text.txt", "--output", "parts.wav")
    journal = tmp_path / ".parts.wav.speaking" / "pieces.jsonl"
    for lines in (2, 4, 6):  # the first line says what is being spoken
        kill_after(tmp_path, journal, lines, *given)
        assert not (tmp_path / "parts.wav").exists()
    assert "parts.wav: continues an interrupted recording after piece " in finish(tmp_path, *given)
    assert (tmp_path / "parts.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.wav", "text.txt", "whole.wav"]


def test_a_killed_script_continues_with_the_bytes_of_an_uninterrupted_one(tmp_path):
    lines = [json.dumps({"text": text, "seed": seed}) for seed, text in enumerate(SENTENCES)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    usual = ("--script", "lines.jsonl", "--rows", "1", "--output")
    finish(tmp_path, *usual, "whole")
    for count in (2, 5):
        kill_after(tmp_path, tmp_path / "parts" / "manifest.jsonl", count, *usual, "parts")
    said = finish(tmp_path, *usual, "parts")
    spoken = int(said.split("manifest.jsonl: ")[1].split()[0])
    assert 0 < spoken <= len(SENTENCES) - 5
    for number in range(1, len(SENTENCES) + 1):
        name = f"{number:05d}.wav"
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
