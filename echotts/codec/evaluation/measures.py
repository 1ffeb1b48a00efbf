"""Distances between a decoded signal and the original: spectra, waveform, intelligibility.

Mel and STFT distances use the training spectra at the scales of a speech codec; SI-SDR is the scale-invariant ratio of
arXiv 1811.02508, STOI the short-time objective intelligibility of Taal et al. 2011 (doi 10.1109/TASL.2011.2114881).
Waveform metrics penalise inaudible phase shifts, spectral ones do not: read them together.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from echotts.audio import resample
from echotts.codec.training.config import SPEECH_SCALES
from echotts.spectrogram import mel_filters

SHORTEST_SAMPLES = max(window for window, _ in SPEECH_SCALES)
FLOOR = 1e-3  # relative to the magnitude of a full-scale sine

_BLOCK_FRAMES = 4096  # frames per block, so that memory does not grow with the recording
_TINY = 1e-12

_STOI_RATE, _STOI_WINDOW, _STOI_FFT, _STOI_SEGMENT = 10_000, 256, 512, 30
_STOI_BANDS, _STOI_LOWEST_HZ, _STOI_RANGE_DB, _STOI_CLIP_DB = 15, 150.0, 40.0, -15.0

Sound = Float[np.ndarray, " _n"]


class Distances(NamedTuple):
    """Distances averaged over the scales.

    `mel` and `stft` are mean absolute differences of log10 magnitudes clamped at FLOOR: 0 is equal, 0.1 is about 25 %
    louder or quieter. `convergence` is the norm of the error over the norm of the magnitudes: silence gives 1.
    """

    mel: float
    stft: float
    convergence: float


def spectral_distances(original: Sound, decoded: Sound, sample_rate: int) -> Distances:
    """Spectral distances of two signals of equal length, at least SHORTEST_SAMPLES."""
    rows = []
    for window, bands in SPEECH_SCALES:
        filters = mel_filters(window, bands, sample_rate)
        filters = filters / np.maximum(filters.sum(0), _TINY)  # each band is a mean of magnitudes
        error = power = mel = stft = 0.0
        frames = 0
        for first, second in zip(_spectra(original, window), _spectra(decoded, window), strict=True):
            error += np.square(first - second).sum()
            power += np.square(first).sum()
            mel += np.abs(_log(first @ filters) - _log(second @ filters)).sum() / bands
            stft += np.abs(_log(first) - _log(second)).sum() / first.shape[1]
            frames += len(first)
        rows.append((mel / frames, stft / frames, np.sqrt(error / max(power, _TINY))))
    mel, stft, convergence = np.mean(rows, axis=0)
    return Distances(float(mel), float(stft), float(convergence))


def si_sdr_db(original: Sound, decoded: Sound) -> float:
    """Scale-invariant signal-to-distortion ratio of mean-free signals in dB; limited to -120..120."""
    reference = original.astype(np.float64) - original.mean(dtype=np.float64)
    estimate = decoded.astype(np.float64) - decoded.mean(dtype=np.float64)
    target = reference * (estimate @ reference / max(reference @ reference, _TINY))
    distortion = estimate - target
    ratio = max(target @ target, _TINY) / max(distortion @ distortion, _TINY)
    return float(10 * np.log10(ratio))


def level_db(original: Sound, decoded: Sound) -> float:
    """RMS level of the decoded signal relative to the original in dB; 0 if both are silent."""
    powers = [max(float(np.mean(np.square(sound, dtype=np.float64))), _TINY) for sound in (original, decoded)]
    return 10 * float(np.log10(powers[1] / powers[0]))


def stoi(original: Sound, decoded: Sound, sample_rate: int) -> float | None:
    """Short-time objective intelligibility, about 0 to 1; None if less than 0.4 s is not silent."""
    clean, processed = (resample(sound, sample_rate, _STOI_RATE).astype(np.float64) for sound in (original, decoded))
    clean, processed = _without_silence(clean, processed)
    bands = [_third_octaves(sound) for sound in (clean, processed)]
    count = bands[0].shape[1] - _STOI_SEGMENT + 1
    if count < 1:
        return None
    x, y = (np.lib.stride_tricks.sliding_window_view(band, _STOI_SEGMENT, axis=1) for band in bands)  # (j, m, n)
    y = y * np.linalg.norm(x, axis=2, keepdims=True) / (np.linalg.norm(y, axis=2, keepdims=True) + 1e-15)
    y = np.minimum(y, x * (1 + 10 ** (-_STOI_CLIP_DB / 20)))
    x, y = (part - part.mean(axis=2, keepdims=True) for part in (x, y))
    norms = np.linalg.norm(x, axis=2) * np.linalg.norm(y, axis=2)
    return float(np.mean(np.sum(x * y, axis=2) / (norms + 1e-15)))


def _without_silence(clean: Sound, processed: Sound) -> tuple[Sound, Sound]:
    """Both signals without the frames in which the clean one is 40 dB below its maximum, by overlap-add."""
    hop = _STOI_WINDOW // 2
    window = np.hanning(_STOI_WINDOW + 2)[1:-1]
    starts = range(0, len(clean) - _STOI_WINDOW, hop)
    frames = [np.array([sound[i : i + _STOI_WINDOW] * window for i in starts]) for sound in (clean, processed)]
    if not len(frames[0]):
        return clean[:0], processed[:0]
    energy_db = 20 * np.log10(np.linalg.norm(frames[0], axis=1) + 1e-15)
    kept = energy_db > energy_db.max() - _STOI_RANGE_DB
    sounds = []
    for part in frames:
        sound = np.zeros((kept.sum() - 1) * hop + _STOI_WINDOW)
        for number, frame in enumerate(part[kept]):
            sound[number * hop : number * hop + _STOI_WINDOW] += frame
        sounds.append(sound)
    return sounds[0], sounds[1]


def _third_octaves(sound: Sound) -> Float[np.ndarray, "j m"]:
    """Root energy in 15 third-octave bands from 150 Hz on, for frames of 256 samples every 128."""
    window = np.hanning(_STOI_WINDOW + 2)[1:-1]
    starts = range(0, len(sound) - _STOI_WINDOW, _STOI_WINDOW // 2)
    frames = np.array([sound[i : i + _STOI_WINDOW] * window for i in starts]).reshape(-1, _STOI_WINDOW)
    power = np.abs(np.fft.rfft(frames, _STOI_FFT)) ** 2
    hz = np.linspace(0, _STOI_RATE, _STOI_FFT + 1)[: _STOI_FFT // 2 + 1]
    matrix = np.zeros((_STOI_BANDS, len(hz)))
    for band in range(_STOI_BANDS):
        centre = _STOI_LOWEST_HZ * 2 ** (band / 3)
        low, high = (int(np.argmin(np.square(hz - centre * 2**step))) for step in (-1 / 6, 1 / 6))
        matrix[band, low:high] = 1
    return np.sqrt(matrix @ power.T)


def _spectra(audio: Sound, window: int) -> Iterator[Float[np.ndarray, "f k"]]:
    """Hann-windowed magnitudes in blocks of frames, hop a quarter window; a unit sine has magnitude about 1."""
    hop = window // 4
    hann = np.hanning(window + 1)[:-1] * 4 / window
    frames = np.lib.stride_tricks.sliding_window_view(audio, window)[::hop]
    for first in range(0, len(frames), _BLOCK_FRAMES):
        yield np.abs(np.fft.rfft(frames[first : first + _BLOCK_FRAMES] * hann))


def _log(magnitudes: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(magnitudes, FLOOR))
