"""Text of any length: spoken in pieces that fit the model's window, in one voice, joined at silences.

Each piece ends with a pause according to its position in the text, and has the loudness of the first one. Without a
reference the first piece becomes the voice of the others.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from echotts.audio import Samples, measure_loudness, sound_span
from echotts.audio.marking import marked
from echotts.synthesis.speech import Speech
from echotts.text.pace import has_sound
from echotts.text.sentences import Break, Piece, split_text

PAUSE_S: dict[Break, float] = {"clause": 0.12, "sentence": 0.35, "paragraph": 0.7}
EDGE_S = 0.03  # of silence kept at both ends of a piece, and faded
MOST_GAIN_DB = 6.0  # maximum gain to match the loudness of the first piece

SpeakPiece = Callable[[int, np.ndarray | None], Speech]
"""Speaks the piece with this number in a voice: a reference's latents (m, c), or None for a voice from the seed."""


def pieces_of(text: str, fits: Callable[[str], bool]) -> list[Piece]:
    """The pieces of a text that contain anything to speak. ValueError if there are none."""
    # Text that fits is not changed.
    pieces = [Piece(text, "paragraph")] if fits(text) else split_text(text, fits)
    sounding = [piece for piece in pieces if has_sound(piece.text)]
    if not sounding:
        raise ValueError(f"the text {text.strip()[:40]!r} contains no letter or digit to speak")
    return sounding


def speak_pieces(
    pieces: Sequence[Piece],
    voice: np.ndarray | None,
    speak: SpeakPiece,
    spoken: Sequence[Speech] = (),
    speed: float = 1.0,
    message: Sequence[int] | None = None,
) -> Iterator[Speech]:
    """Yields each piece trimmed, at the loudness of the first, followed by its pause (none after the last).

    All carry the watermark `message`, if given; a single piece is not changed otherwise. `spoken` are pieces that an
    earlier call yielded: the others follow. Pauses are `speed` times as short.
    """
    level, start = _level_of(pieces, spoken, speed), sum(len(speech.samples) for speech in spoken)
    if voice is None and spoken:
        voice = spoken[0].latents
    for number in range(len(spoken), len(pieces)):
        speech = speak(number, voice)
        if len(pieces) == 1:
            yield dataclasses.replace(speech, samples=marked(speech.samples, speech.sample_rate, message))
            return
        voice = speech.latents if voice is None else voice
        rate = speech.sample_rate
        # The level is that of marked samples, because a continued call has no others.
        samples, level = _levelled(marked(_edged(speech.samples, rate), rate, message, start), rate, level)
        silence = np.zeros(_pause(pieces, number, rate, speed), np.float32)
        start += len(samples) + len(silence)
        yield dataclasses.replace(speech, samples=np.concatenate([samples, silence]))


def joined(speeches: Sequence[Speech]) -> Speech:
    """All pieces concatenated."""
    if len(speeches) == 1:
        return speeches[0]
    return dataclasses.replace(
        speeches[0],
        samples=np.concatenate([speech.samples for speech in speeches]),
        latents=np.concatenate([speech.latents for speech in speeches]),
    )


def _pause(pieces: Sequence[Piece], number: int, rate: int, speed: float) -> int:
    """The samples of silence after a piece."""
    return round(PAUSE_S[pieces[number].ends] * rate / speed) if number < len(pieces) - 1 else 0


def _level_of(pieces: Sequence[Piece], spoken: Sequence[Speech], speed: float) -> float | None:
    """The loudness that the first of the spoken pieces with any sound has set."""
    for number, speech in enumerate(spoken):
        pause = _pause(pieces, number, speech.sample_rate, speed)
        _, level = _levelled(speech.samples[: len(speech.samples) - pause], speech.sample_rate, None)
        if level is not None:
            return level
    return None


def _edged(samples: Samples, rate: int) -> Samples:
    """Trims silence at both ends except for a short edge, which is faded in and out."""
    start, end = sound_span(samples, rate)
    if not end:
        return samples
    edge = round(EDGE_S * rate)
    kept = samples[max(0, start - edge) : end + edge].copy()
    rise = edge_ramp(min(edge, len(kept) // 2))
    kept[: len(rise)] *= rise
    kept[len(kept) - len(rise) :] *= rise[::-1]
    return kept


def edge_ramp(width: int) -> Samples:
    """Gains of a fade-in of `width` samples."""
    return np.sin(np.linspace(0, np.pi / 2, width, dtype=np.float32)) ** 2


def _levelled(samples: Samples, rate: int, level: float | None) -> tuple[Samples, float | None]:
    """Samples at `level` (LUFS), and the level for the following pieces; None means this piece sets it."""
    if level is None:
        loudness = measure_loudness(samples, rate)
        return samples, loudness if np.isfinite(loudness) else None
    return samples * gain_to(level, samples, rate), level


def gain_to(level: float, samples: Samples, rate: int) -> np.float32:
    """The gain that brings samples to a loudness (LUFS), at most MOST_GAIN_DB; 1 for silence."""
    loudness = measure_loudness(samples, rate)
    if not np.isfinite(loudness):
        return np.float32(1.0)
    gain_db = np.clip(level - loudness, -MOST_GAIN_DB, MOST_GAIN_DB)
    return np.float32(10 ** (gain_db / 20))
