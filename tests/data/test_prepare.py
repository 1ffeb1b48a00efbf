"""From recordings to a dataset: accepted and rejected inputs, and resuming after a kill."""

import gzip
import io
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echotts.audio import measure_loudness, read_audio
from echotts.config import Bucket
from echotts.data.format.shards import Sample, read_shard
from echotts.data.prepare.assemble import Clip, choose_references
from echotts.data.prepare.pipeline import Settings, encode_clips, prepare
from echotts.data.prepare.recordings import list_recordings
from echotts.data.remote.dataset import open_dataset
from echotts.data.remote.store import Shards
from echotts.data.stream.length_buckets import bucket_counts
from echotts.data.stream.stream import Stream
from echotts.rundir.rejections import Rejections
from tests.data.corpus import TOKENIZER, config, local_shards, write_tar
from tests.data.recorded import CODEC_CHANNELS, HOP, RATE, CosineCodec, tone, write_clips, write_ljspeech

BUCKETS = (Bucket(frames=24, tokens=24), Bucket(frames=40, tokens=24), Bucket(frames=64, tokens=48))
ROOT = Path(__file__).parent.parent.parent


def samples_of(folder: Path) -> dict[str, Sample]:
    files = open_dataset(str(folder)).files
    return {s.key: s for file in files for s in read_shard(file, CODEC_CHANNELS, Rejections(max_share=0.0))}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_ljspeech_folder_becomes_a_data_set(tmp_path: Path) -> None:
    write_ljspeech(tmp_path / "lj", 10)
    codec, output = CosineCodec(), tmp_path / "out"
    summary = prepare(str(tmp_path / "lj"), output, codec, Settings(shard_samples=4))
    assert (summary.samples, summary.shards, summary.with_reference, summary.rejected) == (10, 3, 10, {})
    assert sorted(path.name for path in output.iterdir()) == [
        "dataset.json",
        "prepare.json",
        "rejected.jsonl",
        *(f"shard-0000{i}.tar" for i in range(3)),
        "silence.npy",
    ]
    dataset, samples = open_dataset(str(output)), samples_of(output)
    assert dataset.silence.shape == (750, CODEC_CHANNELS)
    assert (dataset.info.samples, dataset.info.codec_id, dataset.info.weights_hash) == (10, "cosine", "c0ffee")
    assert dataset.info.hours == pytest.approx(sum(len(s.latent) for s in samples.values()) / 25 / 3600, abs=1e-6)
    latents = np.concatenate([s.latent for s in samples.values()]).astype(np.float64)
    np.testing.assert_allclose(dataset.info.latent_mean, latents.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(dataset.info.latent_std, latents.std(axis=0), atol=1e-5)
    assert sum(count for *_, count in dataset.info.lengths) == 10
    first = samples["0_LJ-000"]
    assert (first.text, first.speaker, first.duration_s) == ("It's number 0.", "lj", 0.6)
    assert first.source == "LJ-000.wav"
    assert any(np.array_equal(first.reference, s.latent) for key, s in samples.items() if key != first.key)
    with Stream(Shards(dataset.sources), config(buckets=BUCKETS), 0, TOKENIZER, dataset.silence) as stream:
        assert stream.next()[0].speaker_mask.any(axis=1).all()


def test_the_length_histogram_sorts_into_buckets_as_the_samples_do(tmp_path: Path) -> None:
    write_ljspeech(tmp_path / "lj", 40)
    prepare(str(tmp_path / "lj"), tmp_path / "out", CosineCodec())
    dataset = open_dataset(str(tmp_path / "out"))
    exact, whole = bucket_counts(local_shards(dataset.files).sources, TOKENIZER, BUCKETS)
    assert min(exact) > 0
    assert bucket_counts(dataset.sources, TOKENIZER, BUCKETS) == (exact, whole)


def test_sound_is_resampled_mixed_to_mono_and_levelled(tmp_path: Path) -> None:
    time_s = np.arange(44100) / 44100
    left = 0.02 * np.sin(2 * np.pi * 300 * time_s)
    soundfile.write(tmp_path / "a.flac", np.stack([left, np.zeros_like(left)], axis=1), 44100)
    (tmp_path / "a.txt").write_text("a tone\n")
    heard: list[np.ndarray] = []

    class Listening(CosineCodec):
        def encode(self, audio: np.ndarray) -> np.ndarray:
            heard.append(audio[0, :RATE])
            return super().encode(audio)

    prepare(str(tmp_path), tmp_path / "out", Listening())
    assert measure_loudness(heard[0], RATE) == pytest.approx(-16.0, abs=0.1)
    expected = read_audio(tmp_path / "a.flac", RATE)
    np.testing.assert_allclose(heard[0] / np.abs(heard[0]).max(), expected / np.abs(expected).max(), atol=1e-4)


def test_latents_do_not_depend_on_other_clips_in_the_batch() -> None:
    codec = CosineCodec()
    clips = [tone(0.6 + i / 9, 100 + 50 * i) for i in range(20)]
    together = encode_clips(codec, clips)
    for clip, latent in zip(clips, together, strict=True):
        assert latent.shape == (-(-len(clip) // HOP), CODEC_CHANNELS)
        np.testing.assert_array_equal(latent, encode_clips(codec, [clip])[0])
        np.testing.assert_allclose(latent, codec.encode(clip[None])[0], atol=1e-6)


def test_few_shapes_are_encoded(tmp_path: Path) -> None:
    codec = CosineCodec(tmp_path / "log")
    encode_clips(codec, [tone(0.5 + i / 100) for i in range(150)])
    assert len(set((tmp_path / "log").read_text().splitlines())) == 4


def write_table(folder: Path, name: str, rows: list[dict[str, str]]) -> Path:
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        quote = '"' if mark == "," else ""
        lines = [mark.join(rows[0])] + [mark.join(f"{quote}{value}{quote}" for value in row.values()) for row in rows]
        path.write_text("\ufeff" + "\r\n".join(lines))
    return path


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.jsonl"])
def test_tables_name_audio_text_speaker_and_language(tmp_path: Path, name: str) -> None:
    names = write_clips(tmp_path, 3)
    rows = [
        {"audio": f"wavs/{clip}.wav", "text": f"one, two {i}", "speaker": "ann" if i else "", "language": "en"}
        for i, clip in enumerate(names)
    ]
    found = list_recordings(str(write_table(tmp_path, name, rows)), speaker="bob")
    assert [r.checked_meta()["text"] for r in found] == ["one, two 0", "one, two 1", "one, two 2"]
    assert [r.checked_meta()["speaker"] for r in found] == ["bob", "ann", "ann"]
    assert {r.checked_meta()["language"] for r in found} == {"en"}
    assert [r.key for r in found] == ["0_LJ-000", "1_LJ-001", "2_LJ-002"]


def test_a_folder_of_pairs_takes_the_speaker_from_the_folder(tmp_path: Path) -> None:
    for speaker in ("ann", "bob"):
        for name in write_clips(tmp_path / speaker, 2, suffix=".ogg"):
            (tmp_path / speaker / "wavs" / f"{name}.ogg").rename(tmp_path / speaker / f"{name}.ogg")
            (tmp_path / speaker / f"{name}.txt").write_text(f"{speaker} says {name}\n")
    found = list_recordings(str(tmp_path))
    assert [r.meta["speaker"] for r in found] == ["ann", "ann", "bob", "bob"]
    assert len({r.key for r in found}) == 4


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_shards_of_recordings_are_a_source(tmp_path: Path, name: str) -> None:
    members = []
    for i in range(4):
        sound = io.BytesIO()
        soundfile.write(sound, tone(0.8), RATE, format="OGG", subtype="OPUS")
        members += [(f"k{i}.opus", sound.getvalue() if i else b"broken")]
        members += [(f"k{i}.json", b'{"text": "one two", "speaker": "us", "language": "en"}' if i != 1 else b"{")]
    write_tar(tmp_path / "plain.tar", members)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "plain.tar").read_bytes()))
    else:
        (tmp_path / "plain.tar").rename(tmp_path / name)
    summary = prepare(str(tmp_path / name), tmp_path / "out", CosineCodec())
    assert summary.rejected == {"bad_json": 1, "unreadable_audio": 1}
    assert {(s.source, s.speaker, s.language) for s in samples_of(tmp_path / "out").values()} == {
        (f"{name}/k{i}", "us", "en") for i in (2, 3)
    }


def test_unusable_recordings_are_reported_by_cause(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    sounds = {
        "good": tone(1.0),
        "short": tone(0.2),
        "long": tone(3.0),
        "silent": np.zeros(RATE, np.float32),
        "wordless": tone(1.0),
    }
    rows = [{"audio": f"wavs/{name}.wav", "text": "words" if name != "wordless" else " "} for name in sounds]
    for name, sound in sounds.items():
        soundfile.write(tmp_path / "wavs" / f"{name}.wav", sound, RATE)
    (tmp_path / "wavs" / "garbage.wav").write_bytes(b"RIFF" + bytes(100))
    rows += [{"audio": "wavs/garbage.wav", "text": "x"}, {"audio": "wavs/absent.wav", "text": "x"}]
    table = write_table(tmp_path, "list.jsonl", rows)
    summary = prepare(str(table), tmp_path / "out", CosineCodec(), Settings(max_s=2.0))
    assert summary.samples == 1
    assert summary.rejected == {"unreadable_audio": 2, "too_short": 1, "too_long": 1, "silent": 1, "empty_text": 1}
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert Counter(line["cause"] for line in lines) == summary.rejected
    assert any(line["source"].endswith("absent.wav") and "no such recording" in line["detail"] for line in lines)


def test_a_reference_is_another_clip_of_the_same_speaker_and_depends_on_the_seed() -> None:
    clips = [Clip(f"k{i}", "ann" if i < 20 else f"s{i}", Path("p"), i) for i in range(25)]
    clips.append(Clip("unknown", None, Path("p"), 25))
    chosen = choose_references(clips, seed=1)
    assert set(chosen) == {f"k{i}" for i in range(20)}
    assert all(clip.speaker == "ann" and clip.key != key for key, clip in chosen.items())
    assert len({clip.key for clip in chosen.values()}) > 5
    assert choose_references(clips, seed=1) == chosen
    assert choose_references(clips, seed=2) != chosen


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: (p / "metadata.csv").write_text("just words\n"), "starts with 'just words'"),
        (lambda p: (p / "metadata.csv").write_text("audio,text\na.wav\n"), "row 2: 1 columns"),
        (lambda p: (p / "metadata.jsonl").write_text('{"audio": "a.wav"}\n{"text"\n'), "line 2: not valid JSON"),
        (lambda p: (p / "metadata.jsonl").write_text('{"text": "a"}\n'), "line 1: not an object with audio"),
        (lambda p: (p / "notes.txt").write_text("x"), "no recordings"),
        (lambda p: (p / "s.tar").write_bytes(b"x" * 2000), "not_a_tar"),
    ],
)
def test_a_source_that_is_none_is_one_clear_line(tmp_path: Path, make: object, words: str) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=words):
        list_recordings(str(tmp_path))


def test_a_second_call_changes_nothing_and_other_settings_are_refused(tmp_path: Path) -> None:
    write_ljspeech(tmp_path / "lj", 5)
    source, output = str(tmp_path / "lj"), tmp_path / "out"
    first = prepare(source, output, CosineCodec())
    before = contents(output)
    log = tmp_path / "log"
    assert prepare(source, output, CosineCodec(log)) == first
    assert contents(output) == before
    assert not log.exists()
    with pytest.raises(ValueError, match="was made with other settings: seed is 0 there, 1 here"):
        prepare(source, output, CosineCodec(), Settings(seed=1))
    other = tmp_path / "other"
    other.mkdir()
    (other / "s.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="did not make"):
        prepare(source, other, CosineCodec())


def test_nothing_usable_is_an_error_with_the_causes(tmp_path: Path) -> None:
    write_table(tmp_path, "list.csv", [{"audio": "a.wav", "text": "x"}])
    with pytest.raises(ValueError, match="none of the 1 recordings is usable: unreadable_audio 1"):
        prepare(str(tmp_path / "list.csv"), tmp_path / "out", CosineCodec())


def test_a_killed_preparation_resumes_with_the_same_result(tmp_path: Path) -> None:
    write_ljspeech(tmp_path / "lj", 140)
    source, log = str(tmp_path / "lj"), tmp_path / "log"
    prepare(source, tmp_path / "whole", CosineCodec(log), Settings(shard_samples=40))
    calls = len(log.read_text().splitlines())
    log.unlink()
    output = tmp_path / "out"
    command = [sys.executable, "-m", "tests.data.recorded", source, str(output), str(log)]
    process = subprocess.Popen(command, cwd=ROOT)
    while process.poll() is None and not (output / ".prepare" / "part-000000.tar").exists():
        time.sleep(0.005)
    time.sleep(0.06)  # into the next part
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (output / "dataset.json").exists()
    (output / ".shard-00000.tar.1.partial").write_bytes(b"half")
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    assert contents(output) == contents(tmp_path / "whole")
    assert len(log.read_text().splitlines()) < calls + calls // 2  # at most one part of three was encoded twice


def test_a_final_shard_is_not_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ljspeech(tmp_path / "lj", 12)
    source, output = str(tmp_path / "lj"), tmp_path / "out"
    settings = Settings(shard_samples=3)

    def stop(stage: str, done: int, *_: int) -> None:
        if stage == "written" and done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, output, CosineCodec(), settings, stop)
    written = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    assert sorted(written) == ["shard-00000.tar", "shard-00001.tar"]
    assert prepare(source, output, CosineCodec(), settings).shards == 4
    assert {name: (output / name).stat().st_mtime_ns for name in written} == written


def test_two_preparations_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    write_ljspeech(tmp_path / "lj", 5)
    source, output = str(tmp_path / "lj"), tmp_path / "out"
    problems = []

    class Meddling(CosineCodec):
        def encode(self, audio: np.ndarray) -> np.ndarray:
            with pytest.raises(OSError, match="another process") as caught:
                prepare(source, output, CosineCodec())
            problems.append(caught)
            return super().encode(audio)

    prepare(source, output, Meddling())
    assert problems
