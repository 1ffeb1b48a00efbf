"""Voices are made of the best parts of recordings, saved under a name, and belong to the codec that encoded them."""

import logging

import numpy as np
import pytest
import safetensors.numpy
import soundfile

from echotts.checkpoint.facts import CodecFacts, Facts
from echotts.cli import voice as voice_command
from echotts.synthesis import references
from echotts.synthesis.stretches import best_stretches, find_phrases
from echotts.synthesis.voices import (
    About,
    Voice,
    check_name,
    find_voice,
    latent_for,
    list_voices,
    read_voice,
    save_voice,
    trained_voice,
    voices_folder,
)
from tests.tiny_speaker import CHANNELS, LinearCodec, tiny_tts

RATE = LinearCodec.sample_rate
ABOUT = About(codec_id="linear", weights_hash="0" * 64, frame_rate_hz=25.0, recordings=("a.wav",))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def made(seed=0):
    latent = np.random.default_rng(seed).standard_normal((12, CHANNELS)).astype(np.float32)
    return Voice(latent, ABOUT)


def syllables(seconds, level, noise=0.0, seed=0, clipped=False):
    """Bursts of a buzz with pauses, over a background."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    buzz = (np.sin(2 * np.pi * 120 * time) + 0.5 * np.sin(2 * np.pi * 240 * time + 1)) * np.cos(2 * np.pi * 3 * time)
    spoken = level * buzz * ((time % 1.0) < 0.6)
    mixed = spoken + noise * rng.standard_normal(len(time))
    return np.clip(mixed * (4.0 if clipped else 1.0), -0.999, 0.999).astype(np.float32)


def test_a_saved_voice_is_read_back_exactly():
    path = save_voice("anna", made())
    first = path.read_bytes()
    again = read_voice(path)
    np.testing.assert_array_equal(again.latent, made().latent)
    assert (again.about, again.duration_s) == (ABOUT, 12 / 25)
    assert save_voice("anna", again).read_bytes() == first
    assert list_voices() == ["anna"]
    assert path.parent == voices_folder()


def test_an_unknown_voice_is_an_error_with_the_nearest_names():
    with pytest.raises(ValueError, match="none is saved yet"):
        find_voice("anna")
    for name in ("anna", "annabel", "zoe"):
        save_voice(name, made())
    with pytest.raises(ValueError, match=r"voice 'ana': .* saved are anna"):
        find_voice("ana")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a b", "-x"])
def test_a_name_that_could_leave_the_folder_is_refused(name):
    with pytest.raises(ValueError, match="a name has letters"):
        check_name(name)


def test_a_voice_of_another_codec_is_refused_with_both_hashes():
    path = save_voice("anna", Voice(made().latent, About(codec_id="x", weights_hash="f" * 64, frame_rate_hz=25.0)))
    with pytest.raises(ValueError, match=r"encoded by the codec x \(ffffffffffff\).*linear \(000000000000\)"):
        latent_for(path, LinearCodec())


def test_a_voice_trained_for_other_weights_is_refused_with_both_hashes():
    facts = Facts(codec=CodecFacts(id="linear", weights_hash="0" * 64, sample_rate=RATE, hop=960), base="a" * 64)
    path = save_voice("anna", trained_voice(made().latent, facts, "runs/mine"))
    np.testing.assert_array_equal(latent_for(path, LinearCodec(), lambda: "a" * 64), made().latent)
    tts = tiny_tts()
    tts._find_hash = lambda: "b" * 64
    with pytest.raises(ValueError, match=r"trained for weights with hash a{12}, but this model has b{12}"):
        tts.encode_reference(path)
    asked = []
    latent_for(save_voice("zoe", made()), LinearCodec(), lambda: asked.append(1) or "")
    assert not asked  # hashing large weights takes seconds


@pytest.mark.parametrize(
    ("tensors", "header", "words"),
    [
        ({"latent": np.zeros((3, 2), np.float32)}, {}, "is not a saved voice"),
        ({"latent": np.zeros((3, 2), np.float32)}, {"voice": "{"}, "voice.safetensors"),
        ({"latent": np.zeros((3, 2), np.float32)}, {"voice": "[]"}, "voice.safetensors"),
        ({"latent": np.full((3, 2), np.nan, np.float32)}, None, "finite"),
        ({"latent": np.zeros(3, np.float32)}, None, "shape"),
        ({"other": np.zeros((3, 2), np.float32)}, None, "is not a saved voice"),
    ],
)
def test_a_damaged_voice_file_is_one_line(tmp_path, tensors, header, words):
    valid = {"voice": '{"codec_id":"x","weights_hash":"y","frame_rate_hz":25,"recordings":[]}'}
    path = tmp_path / "voice.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors, metadata=valid if header is None else header))
    with pytest.raises(ValueError, match=words) as caught:
        read_voice(path)
    assert "\n" not in str(caught.value)


def test_a_clear_recording_is_preferred_to_noisy_and_clipped_ones():
    clear, noisy, clipped = syllables(4, 0.2), syllables(4, 0.2, noise=0.1, seed=1), syllables(4, 0.5, clipped=True)
    best = best_stretches([noisy, clear, clipped], RATE, 2.0, ["noisy", "clear", "clipped"])
    phrases = find_phrases(clear, RATE)
    assert len(phrases) == 4
    assert len(best) == 2 * RATE
    start, end = phrases[0].start, phrases[0].end
    np.testing.assert_array_equal(best[: end - start], clear[start:end])
    assert np.abs(best).max() < 0.32


def test_a_noisy_recording_is_used_if_there_is_no_other_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        best_stretches([syllables(4, 0.2, noise=0.08)], RATE, 2.0, ["street.wav"])
        best_stretches([syllables(4, 0.5, clipped=True)], RATE, 2.0, ["loud.wav"])
    assert caplog.messages[0].startswith("street.wav: noisy: speech is ")
    assert caplog.messages[1].startswith("loud.wav: clipped in ")
    with pytest.raises(ValueError, match="no speech was found"):
        best_stretches([np.zeros(RATE, np.float32)], RATE, 2.0, ["empty.wav"])


def test_a_voice_of_two_recordings_speaks_as_its_latent_does(tmp_path, monkeypatch, capsys):
    tts = tiny_tts()
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], syllables(3, 0.2, seed=number), RATE)
    monkeypatch.setattr("echotts.synthesis.EchoTTS.load", lambda *given: tts)
    assert voice_command.main(["save", "anna", *map(str, paths)]) == 0
    voice = read_voice(find_voice("anna"))
    assert len(voice.latent) == tts.limits.reference_frames
    assert voice.about.recordings == ("0.wav", "1.wav")
    saved = tts.synthesize("one", find_voice("anna"), steps=1)
    np.testing.assert_array_equal(saved.samples, tts.synthesize("one", voice.latent, steps=1).samples)
    references.check_recording(find_voice("anna"))
    assert voice_command.main(["list"]) == voice_command.main(["info", "anna"]) == 0
    shown = capsys.readouterr().out
    assert "anna\n" in shown
    assert "recordings: 0.wav, 1.wav" in shown
    assert voice_command.main(["remove", "anna"]) == 0
    assert list_voices() == []


def test_music_in_the_recordings_of_a_voice_is_said(caplog):
    hum = 0.2 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE)
    path = voices_folder().parent / "hum.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, hum, RATE)
    references.record_voice([path], LinearCodec(), 50)
    assert any(message.startswith(f"{path}: music or tones: ") for message in caplog.messages)
