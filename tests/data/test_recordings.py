"""Tables, pairs and texts as found in practice: every row and recording is read unchanged, or rejected by name."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echotts.data.prepare.pipeline import Settings, prepare
from echotts.data.prepare.recordings import Recording, RecordingReader, list_recordings
from echotts.data.remote.sources import resolve
from echotts.files import read_text
from echotts.rundir.rejections import Rejected
from tests.data.recorded import HOP, RATE, CosineCodec, tone, write_clips, write_ljspeech

CASES = Path(__file__).parent / "cases"
ROOT = Path(__file__).parent.parent.parent


def texts(source: Path) -> list[str]:
    return [str(recording.meta.get("text")) for recording in list_recordings(str(source))]


def fault(recording: Recording) -> Rejected:
    with pytest.raises(Rejected) as caught:
        recording.checked_meta()
    return caught.value


def write_table(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(("name", "mark"), [("metadata.csv", "|"), ("t.csv", "\t"), ("t.tsv", "\t"), ("t.tsv", "|")])
def test_quotation_marks_between_tabs_or_bars_quote_nothing(tmp_path: Path, name: str, mark: str) -> None:
    content = (CASES / "tables/quote_tsv/metadata.csv").read_text().replace("|", mark)
    table = write_table(tmp_path / name, content)
    assert texts(table) == ['"Stop, she said', "plain", 'he said "no"']


@pytest.mark.parametrize(
    "content",
    ['audio,text\na.wav,fine\nb.wav,"open\nc.wav,x\n', 'audio,text\na.wav,fine\nb.wav,"open\nc.wav,"x"\n'],
)
def test_an_unclosed_quote_in_a_comma_table_is_an_error_with_file_and_row(tmp_path: Path, content: str) -> None:
    table = write_table(tmp_path / "t.csv", content)
    with pytest.raises(ValueError, match=r"t\.csv, row 3: .*quotation mark"):
        list_recordings(str(table))


def test_a_quoted_value_between_commas_may_hold_commas_quotes_and_line_feeds(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", 'audio,text\r\na.wav,"one, ""two""\nthree"\r\n\r\nb.wav,four\r\n')
    assert texts(table) == ['one, "two"\nthree', "four"]


def test_lines_end_at_a_line_feed_and_nowhere_else(tmp_path: Path) -> None:
    content = (CASES / "tables/lj_u2028/metadata.csv").read_bytes()
    (tmp_path / "lj/wavs").mkdir(parents=True)
    write_table(tmp_path / "lj/metadata.csv", content)
    assert texts(tmp_path / "lj") == ["one two", "three four", "c"]
    spoken = "one\u2028two\u0085three\ffour"
    assert texts(
        write_table(tmp_path / "t.jsonl", f'{{"audio": "a.wav", "text": "{spoken}"}}\n'.replace("\f", "\\f"))
    ) == [spoken]
    assert texts(write_table(tmp_path / "t.csv", f"audio,text\na.wav,{spoken}\n")) == [spoken]


def test_a_byte_that_is_not_utf8_is_an_error_with_file_line_and_byte(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metadata\.csv, line 2, byte 15 \(0xe9\): not UTF-8"):
        list_recordings(str(CASES / "tables/csv_cp1252/metadata.csv"))
    with pytest.raises(ValueError, match=r"t\.jsonl, line 1, byte 3 \(0xff\)"):
        list_recordings(str(write_table(tmp_path / "t.jsonl", b"\xef\xbb\xbf{\n\xff".replace(b"\n", b" "))))


def test_a_byte_order_mark_is_dropped_from_every_text() -> None:
    assert read_text(CASES / "texts/bom.txt") == read_text(CASES / "texts/nobom.txt") == "seven three"


def test_every_recording_of_a_folder_is_a_sample_or_is_listed_as_rejected(tmp_path: Path) -> None:
    for file in (CASES / "pairs").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "e.m4a").write_bytes(b"no sound")
    (tmp_path / "e.txt").write_text("e")
    (tmp_path / "._a.wav").write_bytes(b"Mac OS X")
    summary = prepare(str(tmp_path), tmp_path / "out", CosineCodec())
    assert summary.samples == 2  # a, and c with its suffixes in capitals
    assert summary.rejected == {"empty_text": 1, "bad_text": 1, "unreadable_audio": 1}
    lines = (tmp_path / "out/rejected.jsonl").read_text()
    assert "there is no b.txt beside the recording" in lines
    assert "d.txt, line 1, byte 4 (0xe9): not UTF-8" in lines
    assert "e.m4a" in lines


def test_recordings_of_any_kind_in_a_folder_are_read_or_rejected_and_folders_name_speakers(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"gr\xfc\xdfe")
    folder.mkdir()
    with (folder / "a.aiff").open("wb") as file:
        soundfile.write(file, np.zeros(1600), 16000, format="AIFF")
    for name in ("b.wma", "c.AMR", "d.3gp"):
        (folder / name).write_bytes(b"something else")
    for name in "abcd":
        (folder / f"{name}.txt").write_text("said")
    found = list_recordings(str(tmp_path))
    assert [recording.checked_meta()["speaker"] for recording in found] == ["gr\\udcfc\\udcdfe"] * 4
    with RecordingReader() as reader:
        assert len(reader.read(found[0], 16000)) == 1600
        for recording in found[1:]:
            with pytest.raises(Rejected, match="cannot be read as a recording"):
                reader.read(recording, 16000)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("audio,text,text\na.wav,one,two\n", "two columns are called text"),
        ("audio\ttext\tAudio\na.wav\tone\tb.wav\n", "two columns are called audio"),
        ("audio,text\ra.wav,one\r", "row 1: a carriage return inside a value: rows end at line feeds"),
    ],
)
def test_an_ambiguous_table_is_rejected(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list_recordings(str(write_table(tmp_path / "t.csv", content)))


def test_pipes_devices_and_sockets_are_rejected_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    (tmp_path / "b.wav").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "c.wav"))
        (tmp_path / "d.wav").mkdir()
        table = write_table(tmp_path / "t.csv", "audio,text\n" + "".join(f"{name}.wav,x\n" for name in "abcd"))
        with RecordingReader() as reader:
            for recording in list_recordings(str(table)):
                with pytest.raises(Rejected, match="unreadable_audio"):
                    reader.read(recording, RATE)


def test_a_row_that_cannot_be_encoded_is_rejected_and_the_others_are_read(tmp_path: Path) -> None:
    rows = [
        '{"audio": "\\ud800.wav", "text": "x"}',
        '{"audio": "a.wav", "text": "\\udcff"}',
        '{"audio": "a\\u0000.wav", "text": "x"}',
        '{"audio": "a.wav", "text": "nul\\u0000"}',
        '{"audio": "' + "long" * 2000 + '.wav", "text": "x"}',
        '{"audio": "wavs/LJ-000.wav", "text": "good"}',
    ]
    write_clips(tmp_path, 1)
    table = write_table(tmp_path / "t.jsonl", "\n".join(rows))
    summary = prepare(str(table), tmp_path / "out", CosineCodec())
    assert summary.samples == 1
    assert sum(summary.rejected.values()) == 5


def test_names_of_files_that_are_not_utf8_stop_no_run_and_are_reported_with_escapes(tmp_path: Path) -> None:
    write_clips(tmp_path, 2)
    os.rename(tmp_path / "wavs/LJ-000.wav", os.fsencode(tmp_path) + b"/na\xefve.wav")
    (tmp_path / "wavs/LJ-001.txt").write_text("one")
    summary = prepare(str(tmp_path), tmp_path / "out", CosineCodec())
    assert (summary.samples, summary.rejected) == (1, {"empty_text": 1})
    assert "na\\\\udcefve.wav" in (tmp_path / "out/rejected.jsonl").read_text()


def test_nothing_is_read_or_written_in_the_encoding_of_the_locale(tmp_path: Path) -> None:
    source = CASES / "tables/latin1_locale"
    code = f"from echotts.cli.data import main; main(['prepare', '--source', {str(source)!r}, '--output', 'out'])"
    flags = ["-X", "warn_default_encoding", "-X", "utf8=0"]
    patch = (
        "import echotts.codec, tests.data.recorded as r; echotts.codec.load_codec = lambda _: r.CosineCodec();"
        "import warnings; warnings.filterwarnings('ignore', category=EncodingWarning);"
        "warnings.filterwarnings('error', category=EncodingWarning, module='echotts');"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}
    command = [sys.executable, *flags, "-c", patch + code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"2 samples (2 with a reference)" in done.stdout


def test_hidden_files_beside_shards_are_skipped(tmp_path: Path) -> None:
    folder = CASES / "tars/appledouble"
    assert [file.name for file in resolve(str(folder), (".tar",))] == ["folders.tar"]
    assert [file.name for file in resolve(f"{folder}/*")] == ["folders.tar"]
    assert [recording.meta["speaker"] for recording in list_recordings(str(folder))]
    (tmp_path / "._x.tar").write_bytes(b"Mac OS X")
    with pytest.raises(FileNotFoundError, match=r"no \.tar file"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("kind", ["pairs", "table"])
def test_a_folder_of_recordings_given_as_shards_says_to_prepare_it(tmp_path: Path, kind: str) -> None:
    write_table(tmp_path / "metadata.csv", "audio,text\n") if kind == "table" else write_clips(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match=r"holds recordings: run `echotts data prepare --source"):
        resolve(str(tmp_path))


def test_a_table_whose_files_are_missing_says_which(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", "audio,text\nabsent.wav,x\n")
    with pytest.raises(
        ValueError, match=r"unreadable_audio 1; first \S*absent\.wav: \S*absent\.wav: no such"
    ) as caught:
        prepare(str(table), tmp_path / "out", CosineCodec())
    assert "{" not in str(caught.value)


def test_held_out_samples_are_a_data_set_of_their_own_without_a_common_text(tmp_path: Path) -> None:
    from echotts.data.remote.dataset import open_dataset
    from tests.data.test_prepare import contents, samples_of

    names = write_clips(tmp_path, 20)
    rows = [f"wavs/{name}.wav,text {i // 2},s{i % 2}\n" for i, name in enumerate(names)]
    table = write_table(tmp_path / "t.csv", "audio,text,speaker\n" + "".join(rows))
    output = tmp_path / "out"
    summary = prepare(str(table), output, CosineCodec(), Settings(heldout_share=0.15))
    held, kept = samples_of(output / "heldout"), samples_of(output)
    assert (summary.samples, summary.heldout) == (len(kept), len(held)) == (16, 4)
    assert not {one.text for one in held.values()} & {one.text for one in kept.values()}
    assert all(one.reference is not None for one in [*held.values(), *kept.values()])
    own = [one.latent.tobytes() for one in kept.values()]
    assert all(one.reference.tobytes() in own for one in kept.values() if one.reference is not None)
    assert len(open_dataset(str(output / "heldout")).silence) == 750
    before = contents(output / "heldout")
    assert prepare(str(table), output, CosineCodec(), Settings(heldout_share=0.15)) == summary
    assert contents(output / "heldout") == before
    with pytest.raises(ValueError, match="leaves none to train on"):
        prepare(str(table), tmp_path / "all", CosineCodec(), Settings(heldout_share=0.99))


def test_progress_is_reported_from_the_first_clips_on(tmp_path: Path) -> None:
    import soundfile

    for number in range(20):
        soundfile.write(tmp_path / f"{number}.wav", tone(1.0), RATE)
        (tmp_path / f"{number}.txt").write_text("x")
    said: list[int] = []
    prepare(
        str(tmp_path),
        tmp_path / "out",
        CosineCodec(),
        None,
        lambda what, n, *_: said.append(n) if what == "encoded" else None,
    )
    assert said == [0, 8, 16, 20, 20]


class ExactCodec(CosineCodec):
    """Latents that are the samples themselves."""

    latent_channels, codec_id = HOP, "exact"

    def encode(self, audio: np.ndarray) -> np.ndarray:
        return np.pad(audio, ((0, 0), (0, -audio.shape[1] % HOP))).reshape(len(audio), -1, HOP)

    def decode(self, latent: np.ndarray) -> np.ndarray:
        return latent.reshape(len(latent), -1)

    def silence_latent(self, frames: int) -> np.ndarray:
        return np.zeros((frames, HOP), np.float32)


def test_a_codec_that_does_not_keep_the_recordings_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class QuietCodec(ExactCodec):
        codec_id = "quiet"

        def decode(self, latent: np.ndarray) -> np.ndarray:
            return super().decode(latent) * 0.6

    write_ljspeech(tmp_path / "lj", 6)
    for codec, line in (
        (ExactCodec(), ""),
        (QuietCodec(), "convergence is 0.40 (0 is equal, 1 is silence) and the level changes by -4.4 dB"),
        (CosineCodec(), "codec cosine does not reproduce these recordings: after encoding and decoding 4 of them"),
    ):
        caplog.clear()
        prepare(str(tmp_path / "lj"), tmp_path / codec.codec_id, codec)
        assert line in caplog.text if line else "does not reproduce" not in caplog.text
