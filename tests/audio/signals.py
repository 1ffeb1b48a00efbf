"""Sounds for the tests."""

import functools
import io
import tarfile

import numpy as np

from echotts.audio import read_audio, resample
from echotts.files import ASSETS

RATE = 16000


def tone(seconds=1.0, rate=RATE, level=0.3, pitch_hz=440.0):
    return (level * np.sin(2 * np.pi * pitch_hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def noise(samples=RATE, level=0.1):
    return (level * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)


@functools.cache
def digit_clips():
    """The built-in reference clips: espeak voices that speak digits."""
    with tarfile.open(ASSETS / "digits" / "reference-000.tar.gz") as file:
        parts = [file.extractfile(name) for name in sorted(file.getnames()) if name.endswith(".opus")]
        return [read_audio(io.BytesIO(part.read()), RATE) for part in parts if part is not None]


def speech(seconds, rate=RATE):
    """Different voices that speak digits one after another."""
    spoken = np.concatenate(digit_clips())
    assert len(spoken) >= seconds * RATE
    return resample(spoken[: round(seconds * RATE)], RATE, rate)
