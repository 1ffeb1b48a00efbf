"""Sounds for the tests."""

import numpy as np

RATE = 16000


def tone(seconds=1.0, rate=RATE, level=0.3, pitch_hz=440.0):
    return (level * np.sin(2 * np.pi * pitch_hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def noise(samples=RATE, level=0.1):
    return (level * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)
