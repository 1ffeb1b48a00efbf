"""The table: a system beside the recordings, the codec's round trip and two controls that must fail.

A figure can be believed when the rows around it are where they belong: the recordings say what the ear itself gets
wrong, the round trip what the codec costs, outputs judged by another output's text and voice what chance gives, noise
what the recogniser makes up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from echotts.audio import Samples
from echotts.evaluation.clips import RATE_HZ, Clip, Task
from echotts.evaluation.ear import Ear, Errors, count_errors
from echotts.evaluation.voices import Embedding, VoiceEncoder, centroids, nearest_voice

SEED = 0
NOISE_LEVEL = 0.1
SHORT_WORDS = 2  # texts of so many words are found in a row of their own: a model of longer ones may fail at them
CONTROLS = ("shuffled text and voice", "noise")
FAILURE = 0.5  # a clip with more word errors than this is a failure: the rate is also given without those
DRAWS = 1000  # of the bootstrap

Recording = tuple[Samples, int]  # samples, rate in Hz
Interval = tuple[float, float]


@dataclass(frozen=True)
class Result:
    """What was found in one clip. `similarity` to the reference: None for silence, and for the reference itself."""

    system: str
    key: str
    text: str
    heard: str
    errors: Errors
    similarity: float | None
    speaker: str
    nearest: str | None
    duration_s: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, a line of results.jsonl."""
        fields = asdict(self)
        errors = fields.pop("errors")
        return fields | errors | {"duration_s": round(self.duration_s, 3)}


@dataclass(frozen=True)
class Score:
    """What was found in one system's clips. Intervals hold 95 % of a bootstrap over clips."""

    system: str
    results: tuple[Result, ...]

    @property
    def errors(self) -> int:
        return sum(one.errors.words_wrong for one in self.results)

    @property
    def words(self) -> int:
        return sum(one.errors.words for one in self.results)

    @property
    def whole(self) -> int:
        """Clips with every word right."""
        return sum(one.errors.words_wrong == 0 for one in self.results)

    @property
    def matched(self) -> int:
        """Clips whose nearest voice is the wanted one."""
        return sum(one.nearest == one.speaker for one in self.results)

    @property
    def clips(self) -> int:
        return len(self.results)

    @property
    def word_error_rate(self) -> float:
        return _word_rate(self.results)

    @property
    def character_error_rate(self) -> float:
        return sum(one.errors.characters_wrong for one in self.results) / max(
            1, sum(one.errors.characters for one in self.results)
        )

    @property
    def failures(self) -> int:
        return len(self.results) - len(self._understood)

    @property
    def word_error_rate_without_failures(self) -> float:
        return _word_rate(self._understood)

    @property
    def voice_match(self) -> float:
        return self.matched / self.clips

    @property
    def similarity(self) -> float | None:
        """Mean cosine to the reference's embedding; None where no clip has one."""
        return _similarity(self.results)

    @property
    def _understood(self) -> tuple[Result, ...]:
        return tuple(one for one in self.results if one.errors.words_wrong <= FAILURE * one.errors.words)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: shares and the counts behind them."""
        similarity = self.similarity
        return {
            "system": self.system,
            "word_error_rate": round(self.word_error_rate, 4),
            "word_error_rate_95": [round(edge, 4) for edge in interval(self.results, _word_rate)],
            "word_errors": self.errors,
            "words": self.words,
            "failures": self.failures,
            "word_error_rate_without_failures": round(self.word_error_rate_without_failures, 4),
            "character_error_rate": round(self.character_error_rate, 4),
            "clips_all_right": self.whole,
            "similarity": None if similarity is None else round(similarity, 4),
            "similarity_95": None if similarity is None else [round(x, 4) for x in interval(self.results, _similarity)],
            "voice_match": round(self.voice_match, 4),
            "voices_matched": self.matched,
            "clips": self.clips,
        }


class Meter:
    """An ear and a memory for voices. `enrolment` are the clips from which the voices are known."""

    def __init__(self, ear: Ear, enrolment: Sequence[Clip]) -> None:
        self.ear = ear
        self._encoder = VoiceEncoder()
        embeddings = self.embed([(clip.samples, RATE_HZ) for clip in enrolment])
        self._known: dict[str, Embedding] = centroids(embeddings, [clip.speaker for clip in enrolment])

    @property
    def voices(self) -> list[str]:
        return list(self._known)

    def hear(self, recordings: Sequence[Recording]) -> list[str]:
        return [self.ear.hear(samples, rate) for samples, rate in recordings]

    def embed(self, recordings: Sequence[Recording]) -> Float[np.ndarray, "b e"]:
        """The voice of each recording; zeros for silence."""
        return self._encoder.embed(recordings)

    def nearest(self, embedding: Embedding) -> str | None:
        return nearest_voice(embedding, self._known)


@dataclass(frozen=True)
class Wanted:
    """What a clip is judged by. `voice`: the reference's embedding, None where the clip is the reference."""

    key: str
    text: str
    speaker: str
    voice: Embedding | None


def measure(
    spoken: Mapping[str, Sequence[Recording]], round_trip: Sequence[Recording], tasks: Sequence[Task], meter: Meter
) -> list[Score]:
    """The whole table for what each system said for each task, and for what the codec made of each recording.

    The two controls that must fail are made of the first system.
    """
    for task in tasks:
        if task.speaker not in meter.voices:
            raise ValueError(f"{task.key}: the voice {task.speaker!r} has no clip to be known by")
    voices = meter.embed([(task.reference.samples, RATE_HZ) for task in tasks])
    wanted = [Wanted(task.key, task.text, task.speaker, voice) for task, voice in zip(tasks, voices, strict=True)]
    recorded = [
        Wanted(task.key, task.recording.text, task.speaker, voice if task.recorded else None)
        for task, voice in zip(tasks, voices, strict=True)
    ]
    recordings = [(task.recording.samples, RATE_HZ) for task in tasks]
    rng = np.random.default_rng(SEED)
    noise = [(NOISE_LEVEL * rng.standard_normal(len(one)).astype(np.float32), rate) for one, rate in recordings]
    heard = {system: _listen(said, meter) for system, said in spoken.items()}
    others = [wanted[other] for other in shuffled(len(wanted))]
    return [
        *(judge(system, wanted, *heard[system], meter) for system in spoken),
        judge("recordings", recorded, *_listen(recordings, meter), meter),
        judge("codec round trip", recorded, *_listen(round_trip, meter), meter),
        judge(CONTROLS[0], others, *heard[next(iter(spoken))], meter),
        judge(CONTROLS[1], wanted, *_listen(noise, meter), meter),
    ]


Listened = tuple[list[str], Float[np.ndarray, "b e"], list[float]]  # texts, voices, seconds


def _listen(recordings: Sequence[Recording], meter: Meter) -> Listened:
    return meter.hear(recordings), meter.embed(recordings), [len(samples) / rate for samples, rate in recordings]


def judge(
    system: str,
    wanted: Sequence[Wanted],
    heard: Sequence[str],
    voices: Float[np.ndarray, "b e"],
    seconds: Sequence[float],
    meter: Meter,
) -> Score:
    """Compares what was heard, and whose voice it was, with what was wanted."""
    results = []
    for one, text, voice, duration_s in zip(wanted, heard, voices, seconds, strict=True):
        alike = float(voice @ one.voice) if one.voice is not None and voice.any() else None
        errors = count_errors(meter.ear.normalise(one.text), meter.ear.normalise(text))
        nearest = meter.nearest(voice)
        results.append(Result(system, one.key, one.text, text, errors, alike, one.speaker, nearest, duration_s))
    return Score(system, tuple(results))


def difference(first: Score, second: Score) -> tuple[float, Interval]:
    """Word error rate of the second less that of the first, on the same clips; and its interval, clips paired."""
    pairs = list(zip(first.results, second.results, strict=True))

    def less(chosen: Sequence[tuple[Result, Result]]) -> float:
        return _word_rate([after for _, after in chosen]) - _word_rate([before for before, _ in chosen])

    return less(pairs), interval(pairs, less)


def interval(results: Sequence[Any], figure: Callable[[Sequence[Any]], float | None]) -> Interval:
    """Between which 95 % of the figure lie when clips are drawn anew, as many as there are, DRAWS times."""
    rng = np.random.default_rng(SEED)
    draws = [figure([results[i] for i in rng.integers(0, len(results), len(results))]) for _ in range(DRAWS)]
    low, high = np.percentile([draw for draw in draws if draw is not None], [2.5, 97.5])
    return float(low), float(high)


def shuffled(count: int) -> list[int]:
    """A random order, of a fixed seed, in which no place keeps its own number (but for a count of 1)."""
    ring = np.random.default_rng(SEED).permutation(count)
    order = np.empty(count, int)
    order[ring] = np.roll(ring, 1)
    return order.tolist()


COLUMNS = (
    *("", "word error rate", "95 %", "errors/words", "without failures", "characters"),
    *("clips all right", "similarity", "voice match", "voices/clips"),
)


def with_short_texts(scores: Sequence[Score]) -> list[Score]:
    """Each score, and below it that of its short texts, where there are both short and longer ones."""
    rows = []
    for one in scores:
        rows.append(one)
        short = tuple(result for result in one.results if result.errors.words <= SHORT_WORDS)
        if one.system not in CONTROLS and 0 < len(short) < one.clips:
            rows.append(Score(f"{one.system}, texts of 1 or {SHORT_WORDS} words", short))
    return rows


def table_rows(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """The cells under COLUMNS, counts beside each share."""
    rows = []
    for one in with_short_texts(scores):
        low, high = interval(one.results, _word_rate)
        rows.append(
            (
                one.system,
                f"{one.word_error_rate:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{one.errors}/{one.words}",
                f"{one.word_error_rate_without_failures:.1%} ({one.failures} left out)",
                f"{one.character_error_rate:.1%}",
                f"{one.whole}/{one.clips}",
                "-" if one.similarity is None else f"{one.similarity:.3f}",
                f"{one.voice_match:.0%}",
                f"{one.matched}/{one.clips}",
            )
        )
    return rows


def format_table(scores: Sequence[Score]) -> str:
    """The scores as aligned text."""
    rows = [COLUMNS, *table_rows(scores)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    widths[0] *= -1  # to the left
    return "\n".join(
        "  ".join(f"{cell:{'<' if width < 0 else '>'}{abs(width)}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def to_report(scores: Sequence[Score], about: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-ready: what was measured and how."""
    return {**about, "scores": [one.to_dict() for one in with_short_texts(scores)]}


def _word_rate(results: Sequence[Result]) -> float:
    return sum(one.errors.words_wrong for one in results) / max(1, sum(one.errors.words for one in results))


def _similarity(results: Sequence[Result]) -> float | None:
    known = [one.similarity for one in results if one.similarity is not None]
    return float(np.mean(known)) if known else None
