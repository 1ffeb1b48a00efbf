"""The meter's table: a system beside the recordings, the codec's round trip and two controls that must fail.

A figure can be believed when the rows around it are where they belong: the recordings say what the meter itself gets
wrong, the round trip what the codec costs, outputs judged by another output's text and voice what chance gives, noise
what the recogniser makes up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from echotts.audio import Samples
from echotts.evaluation.clips import RATE_HZ, Clip
from echotts.evaluation.recogniser import DigitRecogniser, word_errors
from echotts.evaluation.voices import Embedding, VoiceEncoder, centroids, nearest_voice

SEED = 0
NOISE_LEVEL = 0.1

Recording = tuple[Samples, int]  # samples, rate in Hz


@dataclass(frozen=True)
class Score:
    """What the meter found in one set of recordings."""

    system: str
    errors: int
    words: int
    whole: int  # clips with every word right
    matched: int  # clips whose nearest voice is the wanted one
    clips: int

    @property
    def word_error_rate(self) -> float:
        return self.errors / self.words

    @property
    def voice_match(self) -> float:
        return self.matched / self.clips

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: shares and the counts behind them."""
        return {
            "system": self.system,
            "word_error_rate": round(self.word_error_rate, 4),
            "word_errors": self.errors,
            "words": self.words,
            "clips_all_right": self.whole,
            "voice_match": round(self.voice_match, 4),
            "voices_matched": self.matched,
            "clips": self.clips,
        }


class Meter:
    """Ears and a memory for voices. `enrolment` are the clips from which the voices are known."""

    def __init__(self, enrolment: Sequence[Clip]) -> None:
        self._recogniser = DigitRecogniser()
        self._encoder = VoiceEncoder()
        embeddings = self._encoder.embed([(clip.samples, RATE_HZ) for clip in enrolment])
        self._known: dict[str, Embedding] = centroids(embeddings, [clip.speaker for clip in enrolment])

    @property
    def voices(self) -> list[str]:
        return list(self._known)

    def listen(self, recordings: Sequence[Recording]) -> tuple[list[list[str]], list[str | None]]:
        """The words heard and the nearest voice, for each recording."""
        heard = [self._recogniser.hear(samples, rate) for samples, rate in recordings]
        voices = [nearest_voice(embedding, self._known) for embedding in self._encoder.embed(recordings)]
        return heard, voices


def measure(
    system: str, spoken: Sequence[Recording], round_trip: Sequence[Recording], clips: Sequence[Clip], meter: Meter
) -> list[Score]:
    """The whole table for what a system said for each clip, and for what the codec made of each."""
    for clip in clips:
        if clip.speaker not in meter.voices:
            raise ValueError(f"{clip.key}: the voice {clip.speaker!r} has no clip to be known by")
    rng = np.random.default_rng(SEED)
    noise = [(NOISE_LEVEL * rng.standard_normal(len(clip.samples)).astype(np.float32), RATE_HZ) for clip in clips]
    heard, voices = meter.listen(spoken)
    return [
        score(system, clips, heard, voices),
        score("recordings", clips, *meter.listen([(clip.samples, RATE_HZ) for clip in clips])),
        score("codec round trip", clips, *meter.listen(round_trip)),
        score("shuffled text and voice", [clips[other] for other in shuffled(len(clips))], heard, voices),
        score("noise", clips, *meter.listen(noise)),
    ]


def score(system: str, clips: Sequence[Clip], heard: Sequence[Sequence[str]], voices: Sequence[str | None]) -> Score:
    """Counts what was heard against what the clips say, and whose voice it was."""
    errors = [word_errors(clip.words, words) for clip, words in zip(clips, heard, strict=True)]
    return Score(
        system=system,
        errors=sum(errors),
        words=sum(len(clip.words) for clip in clips),
        whole=errors.count(0),
        matched=sum(clip.speaker == voice for clip, voice in zip(clips, voices, strict=True)),
        clips=len(clips),
    )


def choose_references(clips: Sequence[Clip], pool: Sequence[Clip]) -> list[Clip]:
    """For each clip one of the same speaker from `pool`, in turns; ValueError for a speaker that is not in it."""
    by_speaker: dict[str, list[Clip]] = {}
    for clip in pool:
        by_speaker.setdefault(clip.speaker, []).append(clip)
    turns: dict[str, int] = {}
    chosen = []
    for clip in clips:
        if clip.speaker not in by_speaker:
            raise ValueError(f"{clip.key}: no reference clip of the speaker {clip.speaker!r}")
        turn = turns[clip.speaker] = turns.get(clip.speaker, -1) + 1
        chosen.append(by_speaker[clip.speaker][turn % len(by_speaker[clip.speaker])])
    return chosen


def shuffled(count: int) -> list[int]:
    """A random order, of a fixed seed, in which no place keeps its own number (but for a count of 1)."""
    ring = np.random.default_rng(SEED).permutation(count)
    order = np.empty(count, int)
    order[ring] = np.roll(ring, 1)
    return order.tolist()


def format_table(scores: Sequence[Score]) -> str:
    """The scores as aligned text, counts beside each share."""
    rows = [("", "word error rate", "errors/words", "clips all right", "voice match", "voices/clips")]
    for one in scores:
        rows.append(
            (
                one.system,
                f"{one.word_error_rate:.1%}",
                f"{one.errors}/{one.words}",
                f"{one.whole}/{one.clips}",
                f"{one.voice_match:.0%}",
                f"{one.matched}/{one.clips}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    widths[0] *= -1  # to the left
    return "\n".join(
        "  ".join(f"{cell:{'<' if width < 0 else '>'}{abs(width)}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def to_report(scores: Sequence[Score], about: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-ready: what was measured and how."""
    return {**about, "scores": [one.to_dict() for one in scores]}
