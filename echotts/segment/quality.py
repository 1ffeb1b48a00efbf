"""Acoustic quality checks of speech segments: length, clipping, background noise, music, a single voice."""

from dataclasses import dataclass

from echotts.audio import Samples, clipped_share, faults
from echotts.evaluation.voices import VoiceEncoder
from echotts.segment.pieces import LEAD_S, Piece

HALVES_S = 3.2  # two windows of the speaker encoder
SAME_VOICE = 0.6  # minimum cosine of the halves of a piece with one voice


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
    if share > faults.CLIPPED_SHARE:
        return "clipped", f"{share:.2%} of the samples are clipped"
    if tones := faults.music(faults.emphasised(_after_lead(piece), piece.rate)):
        return "music", tones
    if (level_db := snr_db(piece)) < limits.min_snr_db:
        return "low_snr", f"{level_db:.0f} dB, at least {limits.min_snr_db:g} dB are required"
    if length_s >= HALVES_S:
        half = len(piece.samples) // 2
        first, second = encoder.embed([(piece.samples[:half], piece.rate), (piece.samples[half:], piece.rate)])
        if first.any() and second.any() and first @ second < SAME_VOICE:
            return "several_speakers", f"the voices of its halves have a similarity of {first @ second:.2f}"
    return None


def snr_db(piece: Piece) -> float:
    """Level of the piece relative to its background in dB."""
    return faults.snr_db(piece.samples, faults.quiet_frames(_after_lead(piece), piece.rate))


def _after_lead(piece: Piece) -> Samples:
    """The piece without the lead-in, in which other sounds may end."""
    return piece.samples[round(LEAD_S * piece.rate) :]
