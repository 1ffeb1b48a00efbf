"""`echotts codec detect`: a line for each file, exit codes, results as JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echotts.audio.marking import MESSAGE, marked
from echotts.cli.app import UsageError
from echotts.cli.codec import main
from tests.audio.signals import speech

SENT = "".join(map(str, MESSAGE))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Speech with and without the mark, a file that is no recording, one that is missing."""
    clip = speech(5.0, 44100)
    soundfile.write(tmp_path / "plain.flac", clip, 44100)
    soundfile.write(tmp_path / "marked.ogg", np.stack([0 * clip, marked(clip, 44100, MESSAGE)], axis=1), 44100)
    (tmp_path / "text.wav").write_text("no recording")
    return {name: str(tmp_path / name) for name in ("plain.flac", "marked.ogg", "text.wav", "missing.wav")}


def test_each_file_gets_a_line_and_the_exit_code_says_whether_all_carry_the_mark(files, capsys):
    assert main(["detect", files["marked.ogg"]]) == 0
    assert capsys.readouterr().out.startswith(f"{files['marked.ogg']}: watermark {SENT}, false alarm probability")
    assert main(["detect", files["marked.ogg"], files["plain.flac"]]) == 3
    assert f"{files['plain.flac']}: no watermark found, " in capsys.readouterr().out


def test_bad_input_is_one_line_and_does_not_hide_the_other_results(files, capsys):
    assert main(["detect", files["text.wav"], files["plain.flac"], files["missing.wav"], files["marked.ogg"]]) == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == len(output.err.splitlines()) == 2
    text, missing = output.err.splitlines()
    assert text.startswith(f"echotts: {files['text.wav']}: cannot be read as a recording")
    assert missing.startswith(f"echotts: {files['missing.wav']}: no such")
    with pytest.raises(UsageError, match="at least one recording"):
        main(["detect"])


def test_results_are_written_as_json(files, tmp_path):
    main(
        ["detect", files["marked.ogg"], files["plain.flac"], files["missing.wav"], "--output", str(tmp_path / "a.json")]
    )
    found, plain, missing = json.loads((tmp_path / "a.json").read_text())
    assert found["recording"] == files["marked.ogg"]
    assert found["message"] == SENT and found["false_alarm"] < 1e-9 < plain["false_alarm"]
    assert plain["message"] is None and "no such" in missing["error"]
