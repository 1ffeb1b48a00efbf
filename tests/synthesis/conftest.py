"""A tiny model that speaks, and texts for it."""

import numpy as np
import pytest

from tests.tiny_speaker import CHANNELS, LinearCodec, tiny_tts

RATE = LinearCodec.sample_rate
HOP = LinearCodec.hop_length
SILENCE = np.ones((1, CHANNELS), np.float32)


@pytest.fixture(scope="module")
def tts():
    return tiny_tts()


def voice(seconds=1.0, rate=RATE, seed=0):
    return (0.2 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(np.float32)


def say(tts, text="one two", ref=None, **options):
    return tts.synthesize(text, ref, steps=2, **options)
