"""From a long recording to clips: speech detection, rejected segments with causes, and repeated runs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echotts.audio import clipped_share, trim_silence
from echotts.cli import data as command
from echotts.cli.app import UsageError
from echotts.data.teachers import load_teacher
from echotts.evaluation.asr import Transcript, Whisper, count_errors
from echotts.segment import pieces, run
from echotts.segment.pieces import find_pieces, join
from echotts.segment.quality import flatness
from echotts.segment.run import Settings, align, segment

RATE = 24000
FIRST = "The old man walked along the river until the sun went down."
SECOND = "We have never seen so many birds in the garden before."


@pytest.fixture(scope="module")
def said() -> dict[str, np.ndarray]:
    teacher = load_teacher("kokoro")
    spoken = {text: teacher.say(text, voice, 1.0)[0] for text, voice in ((FIRST, "jm_kumo"), (SECOND, "jf_alpha"))}
    return {text: trim_silence(samples, RATE) for text, samples in spoken.items()}


def noise(seconds: float, level: float) -> np.ndarray:
    return level * np.random.default_rng(0).standard_normal(round(seconds * RATE))


def chord(length: int) -> np.ndarray:
    time = np.arange(length) / RATE
    return sum((np.sin(2 * np.pi * pitch * time) for pitch in (220.0, 277.2, 329.6, 440.0)), np.zeros(length))


@pytest.fixture(scope="module")
def talk(said: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """Noise, a sentence, music alone, a sentence, then the first over noise, over music and clipped. And the starts."""
    first, second = said[FIRST], said[SECOND]
    rms = float(np.sqrt(np.mean(first**2)))
    over_noise = first + noise(len(first) / RATE, 0.5 * rms)[: len(first)]
    over_music = first + 0.1 * rms * chord(len(first))
    parts = [first, second, over_noise, over_music, np.clip(second, -1.5 * rms, 1.5 * rms)]
    gaps = [noise(1.5, 0.01), 0.1 * chord(2 * RATE), *(noise(1.2, 1e-4) for _ in range(3))]
    starts, whole = [], []
    for gap, part in zip(gaps, parts, strict=True):
        starts.append((sum(map(len, whole)) + len(gap)) / RATE)
        whole += [gap, part]
    folder = tmp_path_factory.mktemp("talk")
    (folder / "day").mkdir()
    soundfile.write(folder / "day" / "talk one.flac", np.concatenate([*whole, noise(1.0, 1e-4)]), RATE)
    return folder, starts


def test_every_sentence_is_a_piece_with_its_boundaries_within_a_fifth_of_a_second(talk, said) -> None:
    folder, starts = talk
    found = list(find_pieces(folder / "day" / "talk one.flac", 20.0))
    assert len(found) == 5
    for piece, start_s, text in zip(found[:2], starts, (FIRST, SECOND), strict=False):
        assert abs(piece.start_s - start_s) <= 0.2
        assert abs(piece.end_s - start_s - len(said[text]) / RATE) <= 0.2
        assert len(piece.samples) == pytest.approx((piece.end_s - piece.start_s) * RATE, abs=1)


def test_blocks_of_a_long_recording_give_the_same_pieces_as_the_whole(
    said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = noise(0.7, 1e-4)  # shorter than what is carried from block to block
    sentences = [said[text] for text in (FIRST, SECOND, FIRST, SECOND)]
    parts = [pause, *(part for sentence in sentences for part in (sentence, pause))]
    soundfile.write(tmp_path / "a.wav", np.concatenate(parts), RATE)
    whole = [(piece.start_s, piece.end_s) for piece in find_pieces(tmp_path / "a.wav", 20.0)]
    assert len(whole) == 4
    for block_s in (4.5, 6.0, 9.0):
        monkeypatch.setattr(pieces, "BLOCK_S", block_s)
        parts = [(piece.start_s, piece.end_s) for piece in find_pieces(tmp_path / "a.wav", 20.0)]
        np.testing.assert_allclose(parts, whole, atol=0.1)


def test_good_sentences_are_written_with_their_texts_and_the_rest_is_counted_by_cause(talk, tmp_path: Path) -> None:
    folder, starts = talk
    recogniser = Whisper("tiny.en")
    summary = segment(folder, tmp_path / "clips", recogniser, Settings())
    rows = [json.loads(line) for line in (tmp_path / "clips" / "metadata.jsonl").read_text().splitlines()]
    assert [row["audio"] for row in rows] == [
        "day-talk-one/day-talk-one_00000.flac",
        "day-talk-one/day-talk-one_00001.flac",
    ]
    for row, text in zip(rows, (FIRST, SECOND), strict=True):
        assert count_errors(recogniser.normalise(text), recogniser.normalise(row["text"])).words_wrong <= 1
        assert (row["source"], row["speaker"]) == ("day/talk one.flac", "day-talk-one")
        assert (tmp_path / "clips" / row["audio"]).is_file()
    assert dict(summary.rejected) == {"low_snr": 1, "music": 1, "clipped": 1}
    rejected = [json.loads(line) for line in (tmp_path / "clips" / "rejected.jsonl").read_text().splitlines()]
    assert [row["cause"] for row in rejected] == ["low_snr", "music", "clipped"]
    assert [round(row["start_s"]) for row in rejected] == [round(start) for start in starts[2:]]


class FakeWhisper(Whisper):
    """A fake recogniser with fixed results."""

    def __init__(self, *heard: Transcript) -> None:
        self.heard, self.calls = heard, 0

    def transcribe(self, samples: np.ndarray, rate: int) -> Transcript:
        self.calls += 1
        return self.heard[(self.calls - 1) % len(self.heard)]


def test_unintelligible_speech_and_other_languages_are_rejected(talk, tmp_path: Path) -> None:
    recogniser = FakeWhisper(
        Transcript("Guten Tag und guten Abend.", -0.1, "de"), Transcript("They were there again.", -1.5, "en")
    )
    summary = segment(talk[0], tmp_path, recogniser, Settings())
    assert summary.clips == 0
    assert (summary.rejected["other_language"], summary.rejected["unclear"]) == (1, 1)


def test_a_second_run_resumes_with_unfinished_recordings(talk, tmp_path: Path) -> None:
    recogniser = FakeWhisper(Transcript("They were there again.", -0.1, "en"))
    first = segment(talk[0], tmp_path, recogniser, Settings())
    calls = recogniser.calls
    assert segment(talk[0], tmp_path, recogniser, Settings()) == first and recogniser.calls == calls
    (tmp_path / "done.txt").write_text("")  # stopped after the rows were written, before the name was
    assert segment(talk[0], tmp_path, recogniser, Settings()) == first and recogniser.calls == 2 * calls


def test_names_and_texts_in_any_script_are_kept_and_a_second_run_resumes(talk, tmp_path: Path) -> None:
    recogniser = FakeWhisper(Transcript("They were there\u2028again.", -0.1, "en"))
    folder = tmp_path / "talks"
    folder.mkdir()
    (folder / os.fsdecode(b"gr\xfc\xdfe\n1.flac")).symlink_to(talk[0] / "day" / "talk one.flac")
    first = segment(folder, tmp_path / "out", recogniser, Settings())
    assert first.clips > 0 and not first.silent
    calls = recogniser.calls
    assert segment(folder, tmp_path / "out", recogniser, Settings()) == first and recogniser.calls == calls


def test_a_recording_in_which_nobody_speaks_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "rain.wav", noise(5.0, 0.05), RATE)
    summary = segment(tmp_path / "rain.wav", tmp_path / "clips", FakeWhisper(), Settings())
    assert (summary.clips, summary.silent) == (0, ["rain.wav"])


def test_voices_of_one_recording_are_separated_on_request(said, tmp_path: Path) -> None:
    gap = noise(1.0, 1e-4)
    soundfile.write(tmp_path / "a.wav", np.concatenate([gap, *(x for text in said for x in (said[text], gap))]), RATE)
    recogniser = FakeWhisper(Transcript("They were there again.", -0.1, "en"))
    segment(tmp_path / "a.wav", tmp_path / "clips", recogniser, Settings(speakers="cluster"))
    rows = [json.loads(line) for line in (tmp_path / "clips" / "metadata.jsonl").read_text().splitlines()]
    assert [row["speaker"] for row in rows] == ["a_1", "a_2"]


def test_a_known_text_replaces_the_transcript(talk, tmp_path: Path) -> None:
    recogniser = FakeWhisper(
        Transcript("the old men walked along a river", -0.1, "en"), Transcript("sold something else here", -0.1, "en")
    )
    known = Settings(text=f"He said: {FIRST} {SECOND}")
    summary = segment(talk[0] / "day" / "talk one.flac", tmp_path, recogniser, known)
    [row] = map(json.loads, (tmp_path / "metadata.jsonl").read_text().splitlines())
    assert row["text"] == "The old man walked along the river"
    assert summary.rejected["not_in_text"] == 1


def test_words_misheard_at_the_edges_are_those_of_the_text_but_never_those_of_the_clip_before() -> None:
    text = "One fine day, we went home. Nobody was there, and it rained."
    assert align(text, ["on fine day we went hum", "nobody was there", "and at rained"]) == [
        *("One fine day, we went home.", "Nobody was there,"),
        *("and it rained.",),
    ]
    assert align(text, ["completely different words", "it rained"]) == [None, "it rained."]
    assert align("", ["one"]) == [None]


def test_neighbours_are_joined_over_short_pauses_up_to_the_longest_clip() -> None:
    spans = [(0.0, 2.0), (2.3, 4.0), (5.0, 9.0), (9.2, 16.0)]
    assert join(spans, 20.0) == [(0.0, 4.0), (5.0, 16.0)]
    assert join(spans, 5.0) == [(0.0, 4.0), (5.0, 9.0), (9.2, 16.0)]


def test_flat_tops_are_clipping_and_a_peak_is_not() -> None:
    wave = np.sin(np.arange(24000) * 0.1).astype(np.float32)
    assert clipped_share(wave) == 0.0
    assert clipped_share(np.clip(wave, -0.7, 0.7)) > 0.3


def test_tones_are_less_flat_than_noise_of_any_colour() -> None:
    white = noise(1.0, 0.1)
    rumble = np.cumsum(white) * 0.01
    frames = [part[: len(part) // 384 * 384].reshape(-1, 384) for part in (white, rumble, chord(RATE))]
    flat, sloped, tonal = (flatness(part, RATE) for part in frames)
    assert tonal < 0.3 < 0.6 < min(flat, sloped)


def test_the_command_reports_its_results_and_usage_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("echotts.evaluation.asr.Whisper", lambda *_: FakeWhisper())
    soundfile.write(tmp_path / "rain.wav", noise(3.0, 0.05), RATE)
    flags = ["segment", "--source", str(tmp_path / "rain.wav"), "--output", str(tmp_path / "clips")]
    assert command.main(flags) == 0
    assert "0 clips, 0.0 minutes\nno speech in rain.wav" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"--min_s 9\.0 and max_s 3\.0: the first must be above 0"):
        command.main([*flags, "--min_s", "9", "--max_s", "3"])
    with pytest.raises(FileNotFoundError, match="gone: no such recording or folder"):
        run.list_files(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no recordings"):
        run.list_files(tmp_path / "empty")
