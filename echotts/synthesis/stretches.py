"""Selects the parts of recordings that represent a voice best: of usual level, without noise and clipping."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from echotts.audio import Samples, clipped_share
from echotts.audio.faults import CLIPPED_SHARE

# Levels are of all bands at the recording's rate; audio/faults.py measures noise at 8 kHz with emphasis: other numbers.
FRAME_S = 0.02
PAUSE_S = 0.25  # minimum silence between phrases
LEAST_S = 0.3  # minimum length of a phrase
GAP_S = 0.08  # between joined phrases
SPEECH_DB = 25.0  # below the loud frames: anything quieter is a pause
NOISY_DB = 15.0
LEVEL_SLOPE = 0.1  # penalty per dB of deviation from the usual level
ENOUGH_SNR_DB = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phrase:
    """A stretch of speech between two pauses. `snr_db` is its level above the recording's background."""

    recording: int
    start: int  # samples
    end: int
    level_db: float
    snr_db: float
    clipped: float


def best_stretches(recordings: Sequence[Samples], rate: int, seconds: float, names: Sequence[str]) -> Samples:
    """The best phrases of all recordings, at most `seconds` of speech, in their original order.

    Logs noise and clipping of the chosen phrases per recording. ValueError if there is no speech.
    """
    phrases = [phrase for number, samples in enumerate(recordings) for phrase in find_phrases(samples, rate, number)]
    if not phrases:
        raise ValueError(f"{', '.join(names)}: no speech was found: a voice needs a recording of one person speaking")
    usual = float(np.median([phrase.level_db for phrase in phrases]))
    ranked = sorted(phrases, key=lambda phrase: -_score(phrase, usual))
    most, gap, chosen, length = round(seconds * rate), round(GAP_S * rate), [], 0
    for phrase in ranked:
        if length >= most:
            break
        chosen.append(phrase)
        length += phrase.end - phrase.start + gap
    for number, name in enumerate(names):
        _log_faults([phrase for phrase in chosen if phrase.recording == number], name)
    silence = np.zeros(gap, np.float32)
    parts: list[Samples] = []
    for phrase in sorted(chosen, key=lambda phrase: (phrase.recording, phrase.start)):
        parts += [recordings[phrase.recording][phrase.start : phrase.end], silence]
    return np.concatenate(parts[:-1])[:most]


def find_phrases(samples: Samples, rate: int, recording: int = 0) -> list[Phrase]:
    """The phrases of one recording, found by the energy of its frames."""
    levels = _levels_db(samples, rate)
    if not len(levels) or levels.max() < -80:
        return []
    loud = float(np.percentile(levels, 95))
    background = float(np.percentile(levels, 5))
    speech = levels > max(loud - SPEECH_DB, background + 0.3 * (loud - background))
    frame, pause = round(FRAME_S * rate), round(PAUSE_S / FRAME_S)
    spans: list[list[int]] = []
    for at in np.flatnonzero(speech):
        if spans and at - spans[-1][1] <= pause:
            spans[-1][1] = int(at)
        else:
            spans.append([int(at), int(at)])
    phrases = []
    for first, last in spans:
        start, end = max(0, first - 2) * frame, min((last + 3) * frame, len(samples))
        if (end - start) / rate < LEAST_S:
            continue
        level = float(10 * np.log10(np.mean(np.square(samples[start:end], dtype=np.float64)) + 1e-12))
        phrases.append(Phrase(recording, start, end, level, level - background, clipped_share(samples[start:end])))
    return phrases


def _score(phrase: Phrase, usual_db: float) -> float:
    clear = min(phrase.snr_db, ENOUGH_SNR_DB) / ENOUGH_SNR_DB
    return clear - LEVEL_SLOPE * abs(phrase.level_db - usual_db) - 10.0 * (phrase.clipped > CLIPPED_SHARE)


def _log_faults(phrases: Sequence[Phrase], name: str) -> None:
    if not phrases:
        return
    if (snr := float(np.median([phrase.snr_db for phrase in phrases]))) < NOISY_DB:
        logger.warning("%s: noisy: speech is %.0f dB above the background, %.0f or more is better", name, snr, NOISY_DB)
    if clipped := sum(phrase.clipped > CLIPPED_SHARE for phrase in phrases):
        logger.warning("%s: clipped in %d of %d chosen phrases: the voice may sound harsh", name, clipped, len(phrases))


def _levels_db(samples: Samples, rate: int) -> Float[np.ndarray, " t"]:
    frame = round(FRAME_S * rate)
    whole = samples[: len(samples) // frame * frame].astype(np.float64).reshape(-1, frame)
    return 10 * np.log10(np.mean(np.square(whole), axis=1) + 1e-12)
