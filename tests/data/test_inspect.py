"""Counts and decoding of `data inspect`, and the command line of preparation."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echotts.cli import data as command
from echotts.cli.app import UsageError
from echotts.data.format.shards import read_shard
from echotts.data.prepare import pipeline
from echotts.data.prepare.inspect import histogram, inspect, listen, pick_sample, report, suggest_buckets
from echotts.data.prepare.pipeline import Summary, prepare
from echotts.data.prepare.recordings import list_recordings
from echotts.data.remote.dataset import open_dataset
from echotts.rundir.rejections import Rejections
from tests.data.corpus import write_tar
from tests.data.recorded import CODEC_CHANNELS, RATE, CosineCodec, write_ljspeech


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write_ljspeech(folder / "lj", 12)
    prepare(str(folder / "lj"), folder / "out", CosineCodec())
    return folder / "out"


def test_inspection_counts_samples(prepared: Path) -> None:
    found = inspect(str(prepared))
    info = open_dataset(str(prepared)).info
    assert (found.samples, found.shards, len(found.reference_frames)) == (12, 1, 12)
    assert found.hours == pytest.approx(info.hours, abs=1e-6)
    assert found.speakers == Counter({"lj": 12})
    mean, std = found.moments.mean_and_std()
    np.testing.assert_allclose(mean, info.latent_mean, atol=1e-5)
    np.testing.assert_allclose(std, info.latent_std, atol=1e-5)
    text = report(found)
    for words in (
        "samples     12, 12 with a reference",
        "codec       cosine, 4 channels",
        "'lj' 12",
        "0 of 12 samples",
    ):
        assert words in text
    assert text.count("+-") == CODEC_CHANNELS


def test_inspection_counts_invalid_samples_and_continues(prepared: Path, tmp_path: Path) -> None:
    whole = (prepared / "shard-00000.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2])
    write_tar(tmp_path / "b.tar", [])
    found = inspect(str(tmp_path))
    assert 0 < found.samples < 12
    assert found.rejections.counts["truncated_shard"] >= 1
    assert inspect(str(tmp_path), shards=1).shards == 1
    assert "shards      1 of 2" in report(inspect(str(tmp_path), shards=1))


def test_a_histogram_counts_every_value_once() -> None:
    rows = histogram([1, 1, 1, 50, 100], rate_hz=25.0)
    assert len(rows) <= 12
    assert sum(int(row.split(")")[1].split()[0]) for row in rows) == 5
    assert rows[0].endswith("#" * 40)
    assert histogram([7]) == ["       7 -      7         1  " + "#" * 40]


def test_a_sample_is_decoded_to_a_file_with_its_reference_beside(prepared: Path, tmp_path: Path) -> None:
    number = 5
    sample = listen(str(prepared), number, tmp_path / "deep" / "five.flac", CosineCodec())
    expected = list(read_shard(prepared / "shard-00000.tar", CODEC_CHANNELS, Rejections()))[number]
    assert sample.key == expected.key
    for name, latent in (("five.flac", expected.latent), ("five.reference.flac", expected.reference)):
        audio, rate = soundfile.read(tmp_path / "deep" / name)
        assert rate == RATE
        decoded = CosineCodec().decode(latent[None].astype(np.float32))[0]
        np.testing.assert_allclose(audio, np.clip(decoded, -0.892, 0.892), atol=1e-3)


def test_a_sample_that_is_not_there_is_one_clear_line(prepared: Path) -> None:
    files = open_dataset(str(prepared)).files
    for number in (12, -1):
        with pytest.raises(ValueError, match=f"there is no sample {number}"):
            pick_sample(files, CODEC_CHANNELS, number)


def test_the_command_prepares_and_inspects(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ljspeech(tmp_path / "lj", 3)
    (tmp_path / "lj" / "metadata.csv").open("a").write("absent|words\n")
    monkeypatch.setattr("echotts.codec.load_codec", lambda spec: CosineCodec())
    monkeypatch.setattr("echotts.cli.progress.LINE_EVERY_S", 0.0)
    arguments = ["prepare", "--source", str(tmp_path / "lj"), "--output", str(tmp_path / "out"), "--max-s", "9"]
    assert command.main(arguments) == 0
    said = capsys.readouterr()
    assert "3 samples (3 with a reference)" in said.out
    assert "rejected: unreadable_audio 1; for reasons see" in said.out
    assert "encoded 4/4" in said.err
    assert "1 rejected" in said.err
    assert command.main(["inspect", "--data", str(tmp_path / "out")]) == 0
    assert "samples     3" in capsys.readouterr().out
    listening = ["--listen", "1", "--codec", "x", "--output", str(tmp_path / "one.wav")]
    assert command.main(["inspect", "--data", str(tmp_path / "out"), *listening]) == 0
    assert "one.wav: shard-00000.tar/" in capsys.readouterr().out
    assert soundfile.info(tmp_path / "one.wav").samplerate == RATE


def test_a_table_without_speakers_is_answered_with_how_to_name_them(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ljspeech(tmp_path / "lj", 2)
    rows = [f"{path},words" for path in sorted((tmp_path / "lj" / "wavs").iterdir())]
    (tmp_path / "t.csv").write_text("\n".join(["audio,text", *rows]))
    monkeypatch.setattr("echotts.codec.load_codec", lambda spec: CosineCodec())
    arguments = ["prepare", "--source", str(tmp_path / "t.csv"), "--output", str(tmp_path / "out"), "--max-s", "9"]
    assert command.main(arguments) == 0
    said = capsys.readouterr().out
    assert "2 samples (0 with a reference)" in said
    assert "name the speakers in a column speaker of the table, by a folder for each, or with --speaker" in said


def test_wrong_calls_are_usage_errors() -> None:
    for arguments in (
        ["prepair"],
        ["prepare"],
        ["prepare", "--sauce", "x"],
        ["inspect", "--data", "x", "--shards", "many"],
    ):
        with pytest.raises(UsageError):
            command.main(arguments)


def test_the_built_in_corpus_is_a_source_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[str] = []

    def prepared(source: str, *_: object) -> Summary:
        sources.append(source)
        return Summary(samples=0, hours=0.0, shards=0, with_reference=0, rejected={})

    monkeypatch.setattr(pipeline, "prepare", prepared)
    monkeypatch.chdir(tmp_path)
    assert command.main(["prepare", "--source", "demo", "--output", "out"]) == 0
    assert len(list_recordings(sources[0])) == 2950
    (tmp_path / "demo").mkdir()  # a folder of this name has priority
    command.main(["prepare", "--source", "demo", "--output", "out"])
    assert sources[1] == "demo"


def test_buckets_are_suggested_that_hold_every_sample() -> None:
    frames, texts = [10, 10, 40, 41, 100, 7], [5, 9, 3, 12, 2, 1]
    assert suggest_buckets(frames, texts) == ["7x2", "10x10", "41x13", "100x13"]
    assert suggest_buckets([8], [3]) == ["8x4"]
