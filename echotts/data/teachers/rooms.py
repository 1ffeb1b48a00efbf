"""Augmentation of clean speech: speed, bandwidth, room response, background noise or music, level.

A codec should train on as wide a range of sounds as it will meet in use. All randomness comes from the generator.
"""

import numpy as np
import soxr
from jaxtyping import Float

from echotts.audio import Samples, measure_loudness

SPEED = (0.86, 1.16)  # resampling factors: pitch and formants shift together, as for a smaller or larger speaker
LEVEL_LUFS = (-36.0, -14.0)
ROOM_SHARE, BED_SHARE, BAND_SHARE, SPEED_SHARE = 0.35, 0.4, 0.15, 0.6
REVERBERATION_S = (0.08, 0.6)
BED_SNR_DB = (12.0, 40.0)
BAND_HZ = (3400.0, 8000.0)


def vary(speech: Samples, rate: int, random: np.random.Generator) -> Samples:
    """Applies a random selection of the augmentations, drawn from `random`; peaks may exceed 1."""
    if random.random() < SPEED_SHARE:
        speech = soxr.resample(speech, rate * random.uniform(*SPEED), rate)
    if random.random() < BAND_SHARE:
        cut_hz = min(2 * random.uniform(*BAND_HZ), rate)
        speech = soxr.resample(soxr.resample(speech, rate, cut_hz), cut_hz, rate)
    if random.random() < ROOM_SHARE:
        speech = in_room(speech, rate, random)
    if random.random() < BED_SHARE:
        bed = music(len(speech), rate, random) if random.random() < 0.5 else noise(len(speech), random)
        speech = speech + bed * _rms(speech) / _rms(bed) * 10.0 ** (-random.uniform(*BED_SNR_DB) / 20.0)
    loudness = measure_loudness(speech.astype(np.float32), rate)
    wanted = random.uniform(*LEVEL_LUFS)
    gain = 10.0 ** ((wanted - loudness) / 20.0) if np.isfinite(loudness) else 1.0
    return (speech * gain).astype(np.float32)


def in_room(speech: Samples, rate: int, random: np.random.Generator) -> Samples:
    """Adds reverberation: noise that decays by 60 dB within the reverberation time, with damped high frequencies."""
    length = round(random.uniform(*REVERBERATION_S) * rate)
    decay = 10.0 ** (-3.0 * np.arange(length) / length)
    echoes = random.standard_normal(length) * decay
    dull = random.uniform(0.2, 0.9)
    spectrum = np.fft.rfft(echoes)
    echoes = np.fft.irfft(spectrum / (1.0 + dull * 8.0 * np.linspace(0.0, 1.0, len(spectrum))), length)
    first = round(random.uniform(0.001, 0.02) * rate)
    response = np.concatenate([[1.0], np.zeros(first), echoes * random.uniform(0.2, 1.0) / np.linalg.norm(echoes)])
    size = len(speech) + len(response) - 1
    heard = np.fft.irfft(np.fft.rfft(speech, size) * np.fft.rfft(response, size), size)
    return heard[: len(speech) + length // 4].astype(np.float32)


def noise(length: int, random: np.random.Generator) -> Float[np.ndarray, " n"]:
    """Noise with a spectrum falling by 0 to 12 dB per octave, sometimes with mains hum."""
    spectrum = np.fft.rfft(random.standard_normal(length))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1.0) ** random.uniform(0.0, 2.0)
    bed = np.fft.irfft(spectrum, length)
    if random.random() < 0.3:
        mains = np.sin(2 * np.pi * random.uniform(0.001, 0.006) * np.arange(length))
        bed = bed / _rms(bed) + mains
    return bed


def music(length: int, rate: int, random: np.random.Generator) -> Float[np.ndarray, " n"]:
    """Chords with a few partials, with a sharp or soft attack, one every 0.5 to 2 s."""
    bed = np.zeros(length)
    start = 0
    root = random.uniform(50.0, 220.0)
    while start < length:
        span = min(round(random.uniform(0.5, 2.0) * rate), length - start)
        time = np.arange(span) / rate
        envelope = np.exp(-time * random.uniform(0.5, 5.0)) * np.minimum(1.0, time / random.uniform(0.005, 0.2))
        chord = root * 2.0 ** (random.choice([0, 2, 4, 5, 7, 9, 11]) / 12.0)
        for interval in (0, random.choice([3, 4]), 7, 12):
            note = chord * 2.0 ** (interval / 12.0)
            partials = np.arange(1, random.integers(2, 9))
            partials = partials[note * partials < rate / 2.2]
            waves = np.sin(2 * np.pi * note * time[:, None] * partials + random.uniform(0, 2 * np.pi, len(partials)))
            bed[start : start + span] += envelope * (waves / partials).sum(axis=1)
        start += span
    return bed


def _rms(samples: Float[np.ndarray, " n"]) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))) + 1e-12)
