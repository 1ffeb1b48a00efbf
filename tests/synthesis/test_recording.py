"""A recording is kept piece by piece: an interrupted one is continued, the result is that of an uninterrupted one."""

import json
import logging
import re

import numpy as np
import pytest
import soundfile

from echotts.flow.options import SamplerConfig
from echotts.synthesis import recording as recording_module
from echotts.synthesis.longform import joined
from echotts.synthesis.recording import LATENTS, PIECES, SAMPLES, Level, Recording, record_text
from echotts.synthesis.speech import Speech

RATE, CHANNELS = 8000, 8
TEXT = "one two three. four five six, seven eight nine ten. one two"
OPTIONS = {"seed": 3, "duration": 1.0, "sampler": SamplerConfig(steps=2), "candidates": 1}


def speech(seed, seconds=0.5):
    rng = np.random.default_rng(seed)
    samples = (0.3 * rng.standard_normal(round(seconds * RATE))).astype(np.float32)
    return Speech(samples, RATE, rng.standard_normal((round(25 * seconds), CHANNELS)).astype(np.float32))


def recording(path, **facts):
    return Recording(path, {"text": "one"} | facts, RATE, CHANNELS)


def keep(path, pieces, **facts):
    with recording(path, **facts) as kept:
        for piece in pieces:
            kept.append(piece)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_recording_has_the_bytes_of_the_same_speech_saved_at_once(tmp_path, suffix):
    pieces = [speech(seed) for seed in range(3)]
    for level in ("peak", "rms", "clip", "none"):
        with recording(tmp_path / f"a.{suffix}") as kept:
            for piece in pieces:
                kept.append(piece)
            kept.finish(Level(level), "unknown")
        joined(pieces).save(tmp_path / f"b.{suffix}", level)
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{suffix}", f"b.{suffix}"]


def test_a_loudness_is_reached_without_the_whole_recording_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(recording_module, "BLOCK_SAMPLES", 1000)
    piece = speech(0, 3.0)
    with recording(tmp_path / "a.wav") as kept:
        kept.append(piece)
        kept.finish(Level("loudness", -20.0), "unknown", latents=tmp_path / "z.npy")
    piece.save(tmp_path / "b.wav", "loudness", loudness_lufs=-20.0)
    got, wanted = (soundfile.read(tmp_path / name)[0] for name in ("a.wav", "b.wav"))
    np.testing.assert_allclose(got, wanted, atol=1e-3)
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), piece.latents)


def test_finished_pieces_survive_the_process_that_made_them(tmp_path, caplog):
    pieces = [speech(seed) for seed in range(3)]
    keep(tmp_path / "a.wav", pieces[:2])
    with caplog.at_level(logging.INFO), recording(tmp_path / "a.wav") as kept:
        assert "continues an interrupted recording after piece 2" in caplog.text
        assert len(kept) == 2
        for piece, wanted in zip(kept, pieces, strict=False):
            np.testing.assert_array_equal(piece.samples, wanted.samples)
            np.testing.assert_array_equal(piece.latents, wanted.latents)
        kept.append(pieces[2])
        kept.finish(Level(), "unknown")
    joined(pieces).save(tmp_path / "b.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_what_a_killed_process_wrote_of_a_piece_is_replaced(tmp_path):
    pieces = [speech(seed) for seed in range(2)]
    keep(tmp_path / "a.wav", pieces[:1])
    for name in (SAMPLES, LATENTS):
        with (tmp_path / ".a.wav.speaking" / name).open("ab") as file:
            file.write(b"1234567")
    with (tmp_path / ".a.wav.speaking" / PIECES).open("ab") as file:
        file.write(b'{"samples": 80')
    with recording(tmp_path / "a.wav") as kept:
        assert len(kept) == 1
        kept.append(pieces[1])
        np.testing.assert_array_equal(kept[1].samples, pieces[1].samples)
    with recording(tmp_path / "a.wav") as kept:
        assert len(kept) == 2


@pytest.mark.parametrize("damage", ["other facts", "short samples", "no latents", "garbage", "negative", "text"])
def test_a_recording_of_something_else_or_damaged_is_begun_again(tmp_path, caplog, damage):
    keep(tmp_path / "a.wav", [speech(0), speech(1)])
    folder = tmp_path / ".a.wav.speaking"
    facts = {}
    if damage == "other facts":
        facts = {"text": "two"}
    elif damage == "short samples":
        (folder / SAMPLES).write_bytes(b"1234")
    elif damage == "no latents":
        (folder / LATENTS).unlink()
    elif damage == "garbage":
        (folder / PIECES).write_bytes(b"\xff\xfe\n{]\n")
    else:
        key = (folder / PIECES).read_text().split("\n")[0]
        row = {"samples": -4, "frames": 1} if damage == "negative" else {"samples": "many", "frames": 1}
        (folder / PIECES).write_text(f"{key}\n{json.dumps(row)}\n")
    with recording(tmp_path / "a.wav", **facts) as kept:
        assert len(kept) == 0
        assert re.search("a.wav: an interrupted recording is not continued: ", caplog.text)
        kept.append(speech(2))
        np.testing.assert_array_equal(kept[0].samples, speech(2).samples)


def test_only_one_process_records_to_a_file(tmp_path):
    with recording(tmp_path / "a.wav") as kept:
        kept.append(speech(0))
        with pytest.raises(BlockingIOError, match=r"a\.wav: another process is speaking to this file"):
            keep(tmp_path / "a.wav", [])
    keep(tmp_path / "a.wav", [])


def test_samples_that_are_not_finite_are_refused(tmp_path):
    broken = Speech(np.array([np.nan], np.float32), RATE, np.zeros((1, CHANNELS), np.float32))
    with recording(tmp_path / "a.wav") as kept, pytest.raises(ValueError, match="piece 1 has samples that are not fin"):
        kept.append(broken)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reference", [False, True])
def test_a_text_interrupted_after_any_piece_gives_the_bytes_of_one_that_was_not(tts, tmp_path, reference):
    voice = np.random.default_rng(0).standard_normal((10, CHANNELS)).astype(np.float32) if reference else None
    whole = record_text(tts, TEXT, voice, tmp_path / "whole.wav", Level(), **OPTIONS)
    count = len(tts.split(TEXT, 1.0))
    assert whole.duration_s == whole.new_s > 0

    class Interrupted(Exception):
        pass

    for stop in range(1, count + 1):
        output = tmp_path / f"{stop}.wav"

        def interrupt(done, total, stop=stop):
            assert total == count
            if done == stop:
                raise Interrupted

        with pytest.raises(Interrupted):
            record_text(tts, TEXT, voice, output, Level(), on_piece=interrupt, **OPTIONS)
        assert not output.exists()
        rest = record_text(tts, TEXT, voice, output, Level(), **OPTIONS)
        assert output.read_bytes() == (tmp_path / "whole.wav").read_bytes()
        assert rest.duration_s == whole.duration_s
        assert (rest.new_s == 0) == (stop == count)
    assert not list(tmp_path.glob(".*"))


def test_another_text_voice_or_option_begins_again(tts, tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(done, total):
        raise Interrupted

    voice = np.ones((10, CHANNELS), np.float32)
    for text, heard, changed in ((TEXT + " two", None, {}), (TEXT, voice, {}), (TEXT, None, {"seed": 4})):
        with pytest.raises(Interrupted):
            record_text(tts, TEXT, None, tmp_path / "a.wav", Level(), on_piece=interrupt, **OPTIONS)
        again = record_text(tts, text, heard, tmp_path / "a.wav", Level(), **OPTIONS | changed)
        assert again.new_s == again.duration_s


def test_a_pause_follows_the_speech(tts, tmp_path):
    said = record_text(tts, "one", None, tmp_path / "a.wav", Level("none"), pause_s=0.5, **OPTIONS)
    samples = soundfile.read(tmp_path / "a.wav")[0]
    assert len(samples) / RATE == pytest.approx(said.duration_s)
    assert not samples[-RATE // 2 :].any()
    assert samples[: -RATE // 2].any()
