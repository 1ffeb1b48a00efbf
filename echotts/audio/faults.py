"""Faults of a recording that is to represent one voice: clipping, noise, music, no voice, two speakers.

Cheap measures without models: the level of the quietest frames, the background, and how tonal it is; partials that stay
at one frequency (notes do, the harmonics of speech glide); pitch by autocorrelation. Two speakers are only found by
their pitch: voices of similar pitch are not. Thresholds: docs/inference.md has the figures that they were chosen by.
"""

import numpy as np
from jaxtyping import Bool, Float

from echotts.audio.levels import Samples, clipped_share, resample

CLIPPED_SHARE = 0.001  # maximum share of clipped samples
NOISY_DB = 12.0  # minimum SNR
MUSIC_DB = 22.0  # with a higher SNR, sustained tones are a monotonous voice, or too quiet to matter
SUSTAINED_SHARE = 0.15  # maximum share of the power in partials that are sustained
TONAL_FLATNESS = 0.35  # spectral flatness of a background is lower for music and hum, higher for noise
VOICED_SHARE = 0.04  # minimum share of the loud frames that have a pitch; whispering has 5 to 15 %
SEMITONES = 4.5  # minimum distance between the pitches of two speakers
LONGEST_S, SHORTEST_S = 30.0, 1.0
MOST_SNR_DB = 99.0

_RATE_HZ = 8000
_HOP_S = 0.02
_QUIET_S = 0.016
_QUIET_SHARE = 0.05  # share of the frames, the quietest ones, that count as background
_TONAL_BAND_HZ = (100.0, 4000.0)
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
    sound = emphasised(samples, rate)
    pitch, loud = _pitch(sound)
    has_pitch = np.isfinite(pitch)
    voiced = has_pitch.sum() / max(1, loud.sum())
    if tones := music(sound):
        faults["music"] = f"music or tones: {tones}"
    elif (level_db := snr_db(samples, quiet_frames(samples, rate))) < NOISY_DB:
        faults["noise"] = (
            f"noisy: its loud parts are only {max(0.0, level_db):.0f} dB above its quiet ones, 30 or more is better"
        )
    if not faults.keys() & {"music", "noise"} and voiced < VOICED_SHARE:
        faults["voice"] = f"no voice: only {voiced:.0%} of it has a pitch, as speech has"
    distance = _change(pitch[has_pitch])
    if not faults.keys() & {"music", "voice"} and distance > SEMITONES:
        faults["speakers"] = f"two speakers: the pitch changes by {distance:.0f} semitones and stays there"
    return faults


def emphasised(samples: Samples, rate: int) -> Samples:
    """A recording at 8 kHz with less rumble, which would pass for a pitch."""
    sound = resample(samples, rate, _RATE_HZ)
    return sound[1:] - 0.9 * sound[:-1]


def music(sound: Samples) -> str | None:
    """What is music in an `emphasised` recording: sustained notes or a tonal background. None if nothing is."""
    quiet = quiet_frames(sound, _RATE_HZ)
    if (level_db := snr_db(sound, quiet)) >= MUSIC_DB:
        return None
    if (share := sustained_share(sound)) > SUSTAINED_SHARE:
        return f"{share:.0%} of the power is in notes of {_NOTE_S} s or more"
    return f"tones {level_db:.0f} dB below the speech" if flatness(quiet, _RATE_HZ) < TONAL_FLATNESS else None


def quiet_frames(samples: Samples, rate: int) -> Float[np.ndarray, "t w"]:
    """The quietest frames, which are the background."""
    width = round(_QUIET_S * rate)
    frames = samples[: len(samples) // width * width].reshape(-1, width)
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    return frames[np.argsort(power)[: max(1, round(_QUIET_SHARE * len(frames)))]]


def snr_db(samples: Samples, quiet: Float[np.ndarray, "t w"]) -> float:
    """Level of a recording relative to its background in dB, at most MOST_SNR_DB."""
    noise = float(np.mean(np.square(quiet, dtype=np.float64)))
    speech = float(np.mean(np.square(samples, dtype=np.float64)))
    return min(MOST_SNR_DB, 10.0 * float(np.log10(max(speech - noise, 1e-12) / max(noise, 1e-12))))


def flatness(frames: Float[np.ndarray, "t w"], rate: int) -> float:
    """Spectral flatness of the averaged power spectrum in _TONAL_BAND_HZ: near 1 for noise, near 0 for tones.

    The spectrum is first divided by its own smoothed shape, so that coloured noise (rumble, hiss) counts as flat.
    """
    windowed = frames * np.hanning(frames.shape[1])
    power = np.square(np.abs(np.fft.rfft(windowed, axis=1))).mean(axis=0)
    bins_hz = np.fft.rfftfreq(frames.shape[1], 1.0 / rate)
    chosen = np.log(power[(bins_hz >= _TONAL_BAND_HZ[0]) & (bins_hz <= _TONAL_BAND_HZ[1])] + 1e-20)
    smooth = np.convolve(np.pad(chosen, 8, mode="edge"), np.ones(17) / 17, mode="valid")
    peaks = np.exp(chosen - smooth)
    return float(np.exp(np.mean(np.log(peaks))) / np.mean(peaks))


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
