"""Faults of a recording that is to represent one voice: clipping, noise, music, no voice, two speakers.

Cheap measures without models, on at most LONGEST_S at 8 kHz: levels of frames, partials that stay at one frequency
(notes do, the harmonics of speech glide), and pitch by autocorrelation. Two speakers are only found by their pitch:
voices of similar pitch are not. Thresholds: docs/inference.md has the figures that they were chosen by.
"""

import numpy as np
from jaxtyping import Bool, Float

from echotts.audio.levels import Samples, clipped_share, resample

CLIPPED_SHARE = 0.001  # maximum share of clipped samples
NOISY_DB = 15.0  # minimum range between loud and quiet frames
MUSIC_DB = 25.0  # with a wider range, sustained tones are a monotonous voice
SUSTAINED_SHARE = 0.15  # maximum share of the power in partials that are sustained
VOICED_SHARE = 0.04  # minimum share of the loud frames that have a pitch; whispering has 5 to 15 %
SEMITONES = 4.5  # minimum distance between the pitches of two speakers
LONGEST_S, SHORTEST_S = 30.0, 1.0

_RATE_HZ = 8000
_HOP_S = 0.02
_PITCH_HZ = (65, 400)
_PERIODICITY = 0.6  # autocorrelation of a frame with a pitch
_NOTE_S = 0.5
_SIDE = 75  # frames with a pitch, 1.5 s, on each side of a change of speakers


def find_faults(samples: Samples, rate: int) -> dict[str, str]:
    """A line for each fault of a recording that is not silent, by its kind: clipped, noise, music, voice or speakers.

    Recordings below SHORTEST_S are only checked for clipping.
    """
    samples = samples[: round(LONGEST_S * rate)]
    faults: dict[str, str] = {}
    if (share := clipped_share(samples)) > CLIPPED_SHARE:
        faults["clipped"] = f"clipped: {share:.1%} of the samples are at the limit, the voice may sound harsh"
    if len(samples) < SHORTEST_S * rate:
        return faults
    sound = resample(samples, rate, _RATE_HZ)
    sound = sound[1:] - 0.9 * sound[:-1]  # less rumble, which would pass for a pitch
    range_db = _range_db(sound)
    pitch, loud = _pitch(sound)
    has_pitch = np.isfinite(pitch)
    voiced = has_pitch.sum() / max(1, loud.sum())
    if range_db < MUSIC_DB and (share := sustained_share(sound)) > SUSTAINED_SHARE:
        faults["music"] = f"music or tones: {share:.0%} of the power is in notes of {_NOTE_S} s or more"
    elif range_db < NOISY_DB:
        faults["noise"] = f"noisy: its loud parts are only {range_db:.0f} dB above its quiet ones, 30 or more is better"
    if not faults.keys() & {"music", "noise"} and voiced < VOICED_SHARE:
        faults["voice"] = f"no voice: only {voiced:.0%} of it has a pitch, as speech has"
    distance = _change(pitch[has_pitch])
    if not faults.keys() & {"music", "voice"} and distance > SEMITONES:
        faults["speakers"] = f"two speakers: the pitch changes by {distance:.0f} semitones and stays there"
    return faults


def sustained_share(sound: Samples) -> float:
    """Share of the power, at 8 kHz, in spectral peaks that stay within a bin of 8 Hz for half a second."""
    width, hop = 1024, 256
    power = np.square(np.abs(np.fft.rfft(_frames(sound, width, hop) * np.hanning(width), axis=1)))
    level = 10 * np.log10(power + 1e-12)
    sums = np.cumsum(np.pad(level, ((0, 0), (11, 10)), mode="edge"), axis=1)
    around = (sums[:, 21:] - sums[:, :-21]) / 21
    peaks = np.zeros(power.shape, bool)
    peaks[:, 1:-1] = (power[:, 1:-1] > power[:, :-2]) & (power[:, 1:-1] >= power[:, 2:])
    peaks &= (level > around + 8) & (level > level.max() - 50)
    near = peaks.copy()
    near[:, 1:] |= peaks[:, :-1]
    near[:, :-1] |= peaks[:, 1:]
    least = round(_NOTE_S * _RATE_HZ / hop)
    counts = np.cumsum(np.pad(near.astype(np.int32), ((1, 0), (0, 0))), axis=0)
    begins = counts[least:] - counts[:-least] == least
    sustained = np.zeros(power.shape, bool)
    for frame in np.flatnonzero(begins.any(axis=1)):
        sustained[frame : frame + least] |= begins[frame]
    return float((power * sustained).sum() / max(power.sum(), 1e-12))


def _range_db(sound: Samples) -> float:
    """Range between the 5th and 95th percentile of the levels of frames of 20 ms."""
    frames = _frames(sound, round(_HOP_S * _RATE_HZ), round(_HOP_S * _RATE_HZ))
    levels = 10 * np.log10(np.mean(np.square(frames, dtype=np.float64), axis=1) + 1e-12)
    return float(np.subtract(*np.percentile(levels, [95, 5])))


def _pitch(sound: Samples) -> tuple[Float[np.ndarray, " t"], Bool[np.ndarray, " t"]]:
    """Pitch in semitones for each 20 ms, NaN where there is none, and which frames are loud."""
    width = 512
    frames, window = _frames(sound, width, round(_HOP_S * _RATE_HZ)), np.hanning(width)
    both = np.fft.irfft(np.square(np.abs(np.fft.rfft(frames * window, 2 * width, axis=1))), axis=1)[:, :width]
    own = np.fft.irfft(np.square(np.abs(np.fft.rfft(window, 2 * width))))[:width]
    lags = both / (both[:, :1] + 1e-9) / (own / own[0])
    first, last = _RATE_HZ // _PITCH_HZ[1], _RATE_HZ // _PITCH_HZ[0]
    inner = lags[:, first:last]
    best = inner.max(axis=1)
    maxima = (inner >= lags[:, first - 1 : last - 1]) & (inner >= lags[:, first + 1 : last + 1])
    lag = first + np.argmax(maxima & (inner >= 0.9 * best[:, None]), axis=1)  # the shortest of nearly equal periods
    levels = 10 * np.log10(np.mean(np.square(frames), axis=1) + 1e-12)
    loud = levels > levels.max() - 30
    return np.where(loud & (best > _PERIODICITY), -12 * np.log2(lag / _RATE_HZ), np.nan), loud


def _change(pitch: Float[np.ndarray, " v"]) -> float:
    """The largest distance in semitones between the pitches before and after a frame, beyond their own spread."""
    most = 0.0
    for at in range(_SIDE, len(pitch) - _SIDE + 1, 5):
        before, after = np.percentile(pitch[:at], [25, 50, 75]), np.percentile(pitch[at:], [25, 50, 75])
        distance = abs(before[1] - after[1])
        if distance > 0.75 * max(before[2] - before[0], after[2] - after[0]):
            most = max(most, float(distance))
    return most


def _frames(sound: Samples, width: int, hop: int) -> Float[np.ndarray, "t w"]:
    padded = np.pad(sound, (0, max(0, width - len(sound))))
    return np.lib.stride_tricks.sliding_window_view(padded, width)[::hop]
