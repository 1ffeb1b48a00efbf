"""Faults of reference recordings are found by cheap measures; clean voices have none."""

import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from echotts.audio import read_audio
from echotts.audio.faults import find_faults
from tests.audio.signals import RATE, digit_clips, noise, tone

PROMPTS = Path("/usr/share/asterisk/sounds")  # of Debian's asterisk-core-sounds-en-wav
SENTENCE = "the quick brown fox jumps over the lazy dog while the sun sets slowly behind the hills"


@pytest.fixture(scope="module")
def clean():
    """Six seconds of one voice."""
    return np.resize(digit_clips()[0], 6 * RATE)


def chords(seconds, note_s):
    time_s = np.arange(round(note_s * RATE)) / RATE
    notes = [
        np.exp(-1.5 * time_s) * sum(np.sin(2 * np.pi * pitch * factor * time_s) for factor in (1, 1.26, 1.5))
        for pitch in (220, 262, 330, 294)
    ]
    return np.resize(0.1 * np.concatenate(notes), round(seconds * RATE)).astype(np.float32)


def test_noise_music_clipping_and_the_absence_of_a_voice_are_told_apart(clean):
    rms = float(np.sqrt(np.mean(clean**2)))
    bursts = (noise(6 * RATE) * (1.01 + np.sin(2 * np.pi * 3 * np.arange(6 * RATE) / RATE))).astype(np.float32)
    cases = {
        "noise": [noise(6 * RATE), clean + noise(6 * RATE, 10 ** (-10 / 20) * rms)],
        "music": [tone(6.0), chords(6, 1.0), chords(6, 0.6)],
        "clipped": [np.clip(8 * clean / np.abs(clean).max(), -0.9, 0.9).astype(np.float32)],
        "voice": [bursts],
    }
    for kind, sounds in cases.items():
        for number, sound in enumerate(sounds):
            assert list(find_faults(sound, RATE)) == [kind], (kind, number)
    assert not find_faults(clean, RATE)


def test_two_speakers_are_found_by_their_pitch_and_one_speaker_is_not_two(tmp_path):
    if not shutil.which("flite"):
        pytest.skip("needs flite")
    voices = {}
    for name in ("slt", "awb", "rms", "kal"):
        path = tmp_path / f"{name}.wav"
        subprocess.run(["flite", "-voice", name, "-t", SENTENCE, str(path)], check=True, capture_output=True)
        voices[name] = read_audio(path, RATE)
        assert not find_faults(voices[name], RATE), name
    for first, second in (("slt", "rms"), ("rms", "slt"), ("kal", "slt")):
        assert list(find_faults(np.concatenate([voices[first], voices[second]]), RATE)) == ["speakers"]


def test_clean_voices_have_no_faults():
    assert sum(bool(find_faults(clip, RATE)) for clip in digit_clips()) <= 2  # whispering voices are among them


def test_human_prompts_have_no_faults_but_one():
    files = [path for path in PROMPTS.rglob("*.wav") if path.parent.name != "silence"]
    if not files:
        pytest.skip("needs the recordings of asterisk-core-sounds-en-wav")
    found = {path.name: faults for path in files if (faults := find_faults(read_audio(path, 8000), 8000))}
    assert found.keys() <= {"demo-moreinfo.wav"}, found


def test_hours_cost_no_more_than_half_a_minute(clean):
    sound = np.resize(clean, 600 * RATE)
    began = time.thread_time()
    find_faults(sound, RATE)
    assert time.thread_time() - began < 2.0
