"""Acoustic quality checks of speech segments: length, clipping, background noise, music, a single voice."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from echotts.audio import clipped_share
from echotts.audio.faults import CLIPPED_SHARE
from echotts.evaluation.voices import VoiceEncoder
from echotts.segment.pieces import LEAD_S, Piece

FRAME_S = 0.016
QUIET_SHARE = 0.05  # share of the frames, the quietest ones, that count as background
MUSIC_SNR_DB = 30.0  # above this SNR, tones in the background are acceptable
TONAL_FLATNESS = 0.4  # spectral flatness is lower for music and hum, higher for noise
TONAL_BAND_HZ = (100.0, 4000.0)
HALVES_S = 3.2  # two windows of the speaker encoder
SAME_VOICE = 0.6  # minimum cosine of the halves of a piece with one voice
MAX_SNR_DB = 99.0


@dataclass(frozen=True)
class Limits:
    """Requirements for a clip."""

    min_s: float = 2.0
    max_s: float = 20.0
    min_snr_db: float = 15.0

    def __post_init__(self) -> None:
        if not 0.0 < self.min_s < self.max_s:
            raise ValueError(
                f"min_s {self.min_s} and max_s {self.max_s}: the first must be above 0 and below the second"
            )


def fault(piece: Piece, limits: Limits, encoder: VoiceEncoder) -> tuple[str, str] | None:
    """(cause, detail) if a piece must be rejected, else None."""
    length_s = piece.end_s - piece.start_s
    if length_s < limits.min_s:
        return "too_short", f"{length_s:.2f} s, at least {limits.min_s:g} s are required"
    share = clipped_share(piece.samples)
    if share > CLIPPED_SHARE:
        return "clipped", f"{share:.2%} of the samples are clipped"
    level_db = snr_db(piece)
    if level_db < MUSIC_SNR_DB and flatness(_quiet(piece), piece.rate) < TONAL_FLATNESS:
        return "music", f"tones {level_db:.0f} dB below the speech"
    if level_db < limits.min_snr_db:
        return "low_snr", f"{level_db:.0f} dB, at least {limits.min_snr_db:g} dB are required"
    if length_s >= HALVES_S:
        half = len(piece.samples) // 2
        first, second = encoder.embed([(piece.samples[:half], piece.rate), (piece.samples[half:], piece.rate)])
        if first.any() and second.any() and first @ second < SAME_VOICE:
            return "several_speakers", f"the voices of its halves have a similarity of {first @ second:.2f}"
    return None


def snr_db(piece: Piece) -> float:
    """Level of the piece relative to its background in dB, at most MAX_SNR_DB."""
    noise = float(np.mean(np.square(_quiet(piece), dtype=np.float64)))
    speech = float(np.mean(np.square(piece.samples, dtype=np.float64)))
    return min(MAX_SNR_DB, 10.0 * float(np.log10(max(speech - noise, 1e-12) / max(noise, 1e-12))))


def flatness(frames: Float[np.ndarray, "t f"], rate: int) -> float:
    """Spectral flatness of the averaged power spectrum in TONAL_BAND_HZ: near 1 for noise, near 0 for tones.

    The spectrum is first divided by its own smoothed shape, so that coloured noise (rumble, hiss) counts as flat.
    """
    windowed = frames * np.hanning(frames.shape[1])
    power = np.square(np.abs(np.fft.rfft(windowed, axis=1))).mean(axis=0)
    bins_hz = np.fft.rfftfreq(frames.shape[1], 1.0 / rate)
    chosen = np.log(power[(bins_hz >= TONAL_BAND_HZ[0]) & (bins_hz <= TONAL_BAND_HZ[1])] + 1e-20)
    smooth = np.convolve(np.pad(chosen, 8, mode="edge"), np.ones(17) / 17, mode="valid")
    peaks = np.exp(chosen - smooth)
    return float(np.exp(np.mean(np.log(peaks))) / np.mean(peaks))


def _quiet(piece: Piece) -> Float[np.ndarray, "t f"]:
    """The quietest frames, without the lead-in, in which other sounds may end."""
    frame = round(FRAME_S * piece.rate)
    spoken = piece.samples[round(LEAD_S * piece.rate) :]
    frames = spoken[: len(spoken) // frame * frame].reshape(-1, frame)
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    return frames[np.argsort(power)[: max(1, round(QUIET_SHARE * len(frames)))]]
