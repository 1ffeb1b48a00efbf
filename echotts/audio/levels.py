"""Resampling, loudness, output levels, trimming of silence.

The loudness measure is ITU-R BS.1770; the output strategies are those of audiocraft's `audio_write`.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import soxr
from jaxtyping import Float

Samples = Float[np.ndarray, " _n"]  # mono; `_`: lengths may differ within one call
OutputStrategy = Literal["peak", "rms", "clip", "loudness", "none"]

OUTPUT_STRATEGIES: tuple[str, ...] = get_args(OutputStrategy)
OUTPUT_LOUDNESS_LUFS = -14.0
HEADROOM_PEAK = 10.0 ** (-1.0 / 20.0)  # 1 dB below full scale
OUTPUT_RMS = 10.0 ** (-18.0 / 20.0)
SILENT_PEAK = 1e-4  # -80 dB: quieter signals are not amplified
FLAT_TOP_SAMPLES = 3  # consecutive samples at the extreme value: a natural peak has one
SILENT_RMS = 2e-3  # below this, loudness is meaningless


def resample(samples: Samples, rate: int, new_rate: int) -> Samples:
    """Band-limited resampling from `rate` to `new_rate` (Hz); returns the same array if they are equal."""
    if rate == new_rate:
        return samples
    return soxr.resample(samples, rate, new_rate).astype(np.float32, copy=False)


def measure_loudness(samples: Samples, rate: int) -> float:
    """Integrated loudness in LUFS (BS.1770-4), -inf for silence; audio under 0.4 s (one block) is repeated."""
    import pyloudnorm  # imported lazily: it loads scipy.signal, which most callers never need

    meter = pyloudnorm.Meter(rate)
    block = int(np.ceil(meter.block_size * rate))
    wave = samples.astype(np.float64)
    if 0 < len(wave) < block:
        wave = np.tile(wave, -(-block // len(wave)))
    if not len(wave) or not wave.any():
        return -np.inf
    return float(meter.integrated_loudness(wave))


def loudness_normalise(samples: Samples, rate: int, target: float = -16.0) -> Samples:
    """Scales to `target` LUFS, or to a peak of 1 if the peak would exceed it. Silence is returned unchanged."""
    measured = measure_loudness(samples, rate)
    if not np.isfinite(measured):
        return samples
    return _scaled(samples, 10.0 ** ((target - measured) / 20.0))


def normalise_output(
    samples: Samples, rate: int, strategy: str = "peak", *, loudness_lufs: float = OUTPUT_LOUDNESS_LUFS
) -> Samples:
    """Scales a finished recording by a strategy.

    peak: maximum at -1 dB. rms: RMS at -18 dB. clip: clipped at -1 dB. loudness: `loudness_lufs` (BS.1770).
    none: unchanged. rms and loudness reduce the gain instead of clipping peaks above 1. Silence stays silence.
    """
    if strategy not in OUTPUT_STRATEGIES:
        raise ValueError(f"unknown output normalisation {strategy!r}: choose one of {', '.join(OUTPUT_STRATEGIES)}")
    if strategy == "none" or not len(samples):
        return samples
    if strategy == "clip":
        return np.clip(samples, -HEADROOM_PEAK, HEADROOM_PEAK)
    peak = float(np.abs(samples).max())
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    gain = output_gain(strategy, peak, rms, lambda: measure_loudness(samples, rate), loudness_lufs)
    return samples if gain == 1.0 else (samples * gain).astype(np.float32)


def output_gain(
    strategy: str, peak: float, rms: float, loudness: Callable[[], float], loudness_lufs: float = OUTPUT_LOUDNESS_LUFS
) -> float:
    """The gain by which `normalise_output` scales a recording of this peak, RMS and loudness (measured if needed)."""
    if strategy in ("none", "clip") or peak < SILENT_PEAK:
        return 1.0
    if strategy == "peak":
        return HEADROOM_PEAK / peak
    if strategy == "rms":
        return min(OUTPUT_RMS / rms, 1.0 / peak)
    measured = loudness() if rms >= SILENT_RMS else -np.inf
    return min(10.0 ** ((loudness_lufs - measured) / 20.0), 1.0 / peak) if np.isfinite(measured) else 1.0


def trim_silence(samples: Samples, rate: int, *, threshold_db: float = -40.0, window_s: float = 0.01) -> Samples:
    """Removes the start and end where no window's RMS is within `threshold_db` of the loudest window's.

    A silent recording becomes empty.
    """
    start, end = sound_span(samples, rate, threshold_db=threshold_db, window_s=window_s)
    return samples[start:end]


def sound_span(samples: Samples, rate: int, *, threshold_db: float = -40.0, window_s: float = 0.01) -> tuple[int, int]:
    """First sample of what `trim_silence` keeps, and the one after its last; 0, 0 for a silent recording."""
    window = max(1, round(window_s * rate))
    padded = np.pad(samples, (0, -len(samples) % window)).astype(np.float64)
    power = np.mean(np.square(padded).reshape(-1, window), axis=1)
    if not len(power) or power.max() < SILENT_PEAK**2:
        return 0, 0
    loud = np.flatnonzero(power > power.max() * 10.0 ** (threshold_db / 10.0))
    return int(loud[0]) * window, min((int(loud[-1]) + 1) * window, len(samples))


def clipped_share(samples: Samples) -> float:
    """Share of the samples in runs of FLAT_TOP_SAMPLES or more within 0.1 % of the extreme value."""
    level = np.abs(samples)
    top = np.concatenate([[False], level >= 0.999 * level.max(), [False]])
    edges = np.flatnonzero(np.diff(top.astype(np.int8)))
    runs = edges[1::2] - edges[::2]
    return float(runs[runs >= FLAT_TOP_SAMPLES].sum() / len(samples))


def _scaled(samples: Samples, gain: float) -> Samples:
    peak = float(np.abs(samples).max())
    return (samples * min(gain, 1.0 / peak)).astype(np.float32)


def fitted(samples: Samples, count: int) -> Samples:
    """The first `count` samples, filled up with zeros."""
    return np.pad(samples[:count], (0, max(0, count - len(samples))))
