"""Scripts: every bad line is one message with file and line; outputs stay in their folder and differ."""

import json

import numpy as np
import pytest
import soundfile

from echotts.synthesis.script import Failure, read_script

LINES = [
    {"text": "one"},
    {"text": "two, three", "seed": 5, "pause": 0.5, "output": "part/b.flac", "duration": 1.5, "speed": 1.2},
]


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))

    def read_it(content, name="lines.jsonl"):
        path = tmp_path / name
        text = content if isinstance(content, str) else "".join(json.dumps(line) + "\n" for line in content)
        path.write_text(text)
        return read_script(path, tmp_path / "out")

    return read_it


def test_json_lines_and_csv_give_the_same_rows(read):
    rows, failures = read(LINES)
    table = 'text,seed,pause,output,duration,speed\none,,,,,\n"two, three",5,0.5,part/b.flac,1.5,1.2\n'
    assert not failures
    assert [row.fields for row in rows] == [row.fields for row in read(table, "lines.csv")[0]]
    assert [str(row.output) for row in rows] == ["00001.wav", "part/b.flac"]
    assert [str(row.output) for row in read(table, "lines.csv")[0]] == ["00002.wav", "part/b.flac"]


BAD = [
    ({"text": "..."}, "the text '...' contains no letter or digit"),
    ({"txt": "one"}, "missing required field text"),
    ({"text": "one", "vioce": "anna"}, "vioce"),
    ({"text": 3}, "text: Expected str, got int"),
    ({"text": "one", "seed": -1}, "seed -1: give a whole number"),
    ({"text": "one", "seed": 1.5}, "seed: Expected int"),
    ({"text": "one", "pause": 61}, "pause 61.0 s: give 0 to 60 seconds"),
    ({"text": "one", "duration": 0}, "duration 0.0 s: give seconds above 0"),
    ({"text": "one", "duration": "soon"}, "duration: "),
    ({"text": "one", "speed": 3}, "speed 3.0: give a factor from 0.5 to 2.0"),
    ({"text": "one", "voice": "nobody"}, "voice 'nobody': there is none of that name"),
    ({"text": "one", "voice": "a", "speaker_ref": "b.wav"}, "has both voice and speaker_ref"),
    ({"text": "one", "speaker_ref": "none.wav"}, "none.wav: no such recording"),
    ({"text": "one", "output": "../a.wav"}, "output '../a.wav': give a name in the output folder"),
    ({"text": "one", "output": "a/../../b.wav"}, "give a name in the output folder"),
    ({"text": "one", "output": "/tmp/a.wav"}, "give a name in the output folder"),
    ({"text": "one", "output": ".a.wav"}, "give a name in the output folder"),
    ({"text": "one", "output": "a\nb.wav"}, "printable characters"),
    ({"text": "one", "output": "a\\b.wav"}, "printable characters"),
    ({"text": "one", "output": ""}, "printable characters"),
    ({"text": "one", "output": "a" * 300 + ".wav"}, "printable characters"),
    ({"text": "one", "output": "a.txt"}, "unknown suffix '.txt'"),
    ({"text": "one", "output": "link/a.wav"}, "a link leads out of the output folder"),
]


def test_a_bad_line_is_a_message_with_file_and_line_and_loses_no_other(read, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    rows, failures = read([*(line for line, _ in BAD), {"text": "one"}])
    assert [row.line for row in rows] == [len(BAD) + 1]
    for number, ((_, words), failure) in enumerate(zip(BAD, failures, strict=True), 1):
        assert failure.line == number
        assert failure.message.startswith(f"{tmp_path / 'lines.jsonl'}, line {number}: ")
        assert words in failure.message
        assert "\n" not in failure.message
    rows, failures = read('{"text": "one"}\n{"text": \n[1]\n')
    assert len(rows) == 1
    assert [failure.line for failure in failures] == [2, 3]


def test_bad_numbers_and_rows_of_a_csv_table_name_the_line(read, tmp_path):
    rows, failures = read('text,seed\none,1\n"two\nlines",x\nthree\nfour,9999999999999999999999\n', "lines.csv")
    where = f"{tmp_path / 'lines.csv'}, line"
    assert [row.line for row in rows] == [2]
    assert failures[:2] == [
        Failure(4, f"{where} 4: seed 'x' is not a number"),
        Failure(5, f"{where} 5: has 1 values for 2 columns"),
    ]
    assert failures[2].line == 6


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        ([{"text": "one", "output": "a.wav"}] * 2, "a.jsonl", "line 2: the output a.wav is that of line 1, too"),
        ([{"text": "one"}, {"text": "two", "output": "00001.wav"}], "a.jsonl", "line 2: the output 00001.wav"),
        ("", "a.jsonl", "the script has no lines"),
        ("text\n", "a.csv", "the script has no lines"),
        ("", "a.csv", "line 1: has no column text"),
        ("text,vioce\n", "a.csv", "line 1: column 'vioce', did you mean voice?"),
        ("text,text\n", "a.csv", "line 1: column 'text' (columns are text"),
        ('text\n"one\n', "a.csv", "is not CSV"),
        ("text\n", "a.txt", "unknown suffix '.txt': give a script as .jsonl or .csv"),
    ],
)
def test_what_is_no_script_is_refused_before_anything_is_spoken(read, content, name, words):
    with pytest.raises(ValueError, match=name) as caught:
        read(content, name)
    assert words in str(caught.value)


def test_an_output_does_not_replace_a_recording_that_a_row_reads(read, tmp_path):
    (tmp_path / "out").mkdir()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    soundfile.write(tmp_path / "out" / "anna.wav", noise, 16000)
    lines = [{"text": "one", "output": "anna.wav"}, {"text": "two", "speaker_ref": "out/anna.wav"}]
    with pytest.raises(ValueError, match=r"line 1: the output anna\.wav is the voice of line 2"):
        read(lines)
