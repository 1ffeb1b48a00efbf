"""Reference voices: formats, lengths, levels, and rejected inputs."""

import logging

import numpy as np
import pytest
import soundfile

from echotts.synthesis import references
from tests.synthesis.conftest import RATE, say, voice
from tests.tiny_speaker import CHANNELS, REFERENCE_FRAMES


@pytest.mark.parametrize(("rate", "name"), [(44100, "ref.mp3"), (22050, "ref.ogg"), (48000, "ref.flac")])
def test_a_reference_of_any_format_and_rate_is_the_same_voice(tts, tmp_path, rate, name):
    time_s = np.arange(rate) / rate
    tone = (0.3 * np.sin(2 * np.pi * 300 * time_s)).astype(np.float32)
    soundfile.write(tmp_path / name, np.stack([tone, tone], axis=1), rate)
    latent = tts.encode_reference(tmp_path / name)
    assert latent.shape == (REFERENCE_FRAMES, CHANNELS)
    wave = tts.codec.decode(latent[None])[0]
    assert np.abs(wave).max() > 0


def test_long_references_are_truncated_to_the_window_with_a_message(tts, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(references, "find_faults", lambda samples, rate: {})  # the test's voice is noise
    with caplog.at_level(logging.WARNING):
        assert len(tts.encode_reference((voice(0.6), RATE))) == 15
        assert not caplog.messages
        assert len(tts.encode_reference((voice(3.0), RATE))) == REFERENCE_FRAMES
        assert caplog.messages == [
            "speaker_ref: is 3.0 s long, only the first 0.6 s are used (the model's window for references)"
        ]
        caplog.clear()
        monkeypatch.setattr(references, "LIMIT_S", 1.0)
        soundfile.write(tmp_path / "long.wav", voice(1.5), RATE)
        tts.encode_reference(tmp_path / "long.wav")
    assert caplog.messages[0].endswith("long.wav: longer than 1 s, the rest is ignored")


def test_a_round_trip_keeps_the_length_and_the_signal(tts):
    heard = tts.round_trip(voice(0.73, rate=16000), 16000)
    assert len(heard) == round(0.73 * RATE)


def test_references_without_a_voice_are_rejected_with_a_one_line_error(tts, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "short.wav", voice(0.4), RATE)
    (tmp_path / "text.mp3").write_text("hello")
    cases = {
        "silent.wav": "is silent: a reference needs at least 0.5 s of speech",
        "short.wav": "is 0.40 s long: a reference needs at least 0.5 s of speech",
        "text.mp3": "cannot be read as a recording",
        "none.wav": "no such recording",
    }
    for name, words in cases.items():
        with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
            say(tts, ref=tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)
    broken = voice()
    broken[5] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        say(tts, ref=(broken, RATE))


def test_faults_of_a_reference_are_said_in_one_line_each_and_only_what_is_used_is_checked(tts, caplog, tmp_path):
    loud = np.clip(3 * voice(2.0), -0.5, 0.5)
    soundfile.write(tmp_path / "loud.wav", loud, RATE)
    references.encode_reference(tmp_path / "loud.wav", tts.codec, 100)
    assert [message.split(": ")[:2] for message in caplog.messages] == [
        [str(tmp_path / "loud.wav"), "clipped"],
        [str(tmp_path / "loud.wav"), "noisy"],
    ]
    caplog.clear()
    references.encode_reference((np.concatenate([voice(0.5), loud]), RATE), tts.codec, 10)
    assert [message for message in caplog.messages if "only the first" not in message] == []
