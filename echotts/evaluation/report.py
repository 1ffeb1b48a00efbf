"""The results table: a system beside human recordings, the codec's round trip and two negative controls.

The other rows tell how to read a system's score: the recordings show the recogniser's own error rate, the round trip
the loss by the codec, shuffled texts and voices the chance level, and noise what the recogniser invents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from echotts.audio import Samples
from echotts.evaluation.asr import Errors, Recogniser, count_errors
from echotts.evaluation.clips import RATE_HZ, Clip, Task
from echotts.evaluation.voices import Embedding, VoiceEncoder, centroids, nearest_voice

SEED = 0
NOISE_LEVEL = 0.1
SHORT_WORDS = 2  # texts of at most this many words also get a row of their own: models of longer texts may fail there
CONTROLS = ("shuffled text and voice", "noise")
FAILURE = 0.5  # a clip with a higher word error rate is a failure; the rate is also given without failures
DRAWS = 1000  # bootstrap resamples

Recording = tuple[Samples, int]  # samples, rate in Hz
Interval = tuple[float, float]


@dataclass(frozen=True)
class Result:
    """Scores of one clip. `similarity` to the reference: None for silence, and for the reference itself."""

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
        """JSON-serialisable, a line of results.jsonl."""
        fields = asdict(self)
        errors = fields.pop("errors")
        return fields | errors | {"duration_s": round(self.duration_s, 3)}


@dataclass(frozen=True)
class Score:
    """Scores of one system's clips. Intervals are 95 % bootstrap intervals over clips."""

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
        """Number of clips without a word error."""
        return sum(one.errors.words_wrong == 0 for one in self.results)

    @property
    def matched(self) -> int:
        """Number of clips whose nearest voice is the intended one."""
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
        """Mean cosine similarity to the reference's embedding; None if no clip has one."""
        return _similarity(self.results)

    @property
    def _understood(self) -> tuple[Result, ...]:
        return tuple(one for one in self.results if one.errors.words_wrong <= FAILURE * one.errors.words)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable: rates and the counts behind them."""
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


class Evaluator:
    """A speech recogniser and a voice encoder. The known voices are those of the clips `enrolment`."""

    def __init__(self, recogniser: Recogniser, enrolment: Sequence[Clip]) -> None:
        self.recogniser = recogniser
        self._encoder = VoiceEncoder()
        embeddings = self.embed([(clip.samples, RATE_HZ) for clip in enrolment])
        self._known: dict[str, Embedding] = centroids(embeddings, [clip.speaker for clip in enrolment])

    @property
    def voices(self) -> list[str]:
        return list(self._known)

    def recognise(self, recordings: Sequence[Recording]) -> list[str]:
        return [self.recogniser.recognise(samples, rate) for samples, rate in recordings]

    def embed(self, recordings: Sequence[Recording]) -> Float[np.ndarray, "b e"]:
        """The voice embedding of each recording; zeros for silence."""
        return self._encoder.embed(recordings)

    def nearest(self, embedding: Embedding) -> str | None:
        return nearest_voice(embedding, self._known)


@dataclass(frozen=True)
class Target:
    """What a clip is compared with. `voice`: the reference's embedding, None if the clip is the reference."""

    key: str
    text: str
    speaker: str
    voice: Embedding | None


def measure(
    spoken: Mapping[str, Sequence[Recording]],
    round_trip: Sequence[Recording],
    tasks: Sequence[Task],
    evaluator: Evaluator,
) -> list[Score]:
    """The whole table, from the recordings of each system (one per task) and the codec's round trips of recordings.

    The negative controls are made from the first system's recordings.
    """
    for task in tasks:
        if task.speaker not in evaluator.voices:
            raise ValueError(f"{task.key}: the voice {task.speaker!r} has no enrolment clip")
    voices = evaluator.embed([(task.reference.samples, RATE_HZ) for task in tasks])
    targets = [Target(task.key, task.text, task.speaker, voice) for task, voice in zip(tasks, voices, strict=True)]
    recorded = [
        Target(task.key, task.recording.text, task.speaker, voice if task.recorded else None)
        for task, voice in zip(tasks, voices, strict=True)
    ]
    recordings = [(task.recording.samples, RATE_HZ) for task in tasks]
    rng = np.random.default_rng(SEED)
    noise = [(NOISE_LEVEL * rng.standard_normal(len(one)).astype(np.float32), rate) for one, rate in recordings]
    heard = {system: _listen(said, evaluator) for system, said in spoken.items()}
    others = [targets[other] for other in shuffled(len(targets))]
    return [
        *(score(system, targets, *heard[system], evaluator) for system in spoken),
        score("recordings", recorded, *_listen(recordings, evaluator), evaluator),
        score("codec round trip", recorded, *_listen(round_trip, evaluator), evaluator),
        score(CONTROLS[0], others, *heard[next(iter(spoken))], evaluator),
        score(CONTROLS[1], targets, *_listen(noise, evaluator), evaluator),
    ]


Listened = tuple[list[str], Float[np.ndarray, "b e"], list[float]]
"""Transcripts, voice embeddings, durations in seconds."""


def _listen(recordings: Sequence[Recording], evaluator: Evaluator) -> Listened:
    return (
        evaluator.recognise(recordings),
        evaluator.embed(recordings),
        [len(samples) / rate for samples, rate in recordings],
    )


def score(
    system: str,
    targets: Sequence[Target],
    heard: Sequence[str],
    voices: Float[np.ndarray, "b e"],
    seconds: Sequence[float],
    evaluator: Evaluator,
) -> Score:
    """Compares transcripts and voices with the targets."""
    results = []
    for one, text, voice, duration_s in zip(targets, heard, voices, seconds, strict=True):
        alike = float(voice @ one.voice) if one.voice is not None and voice.any() else None
        errors = count_errors(evaluator.recogniser.normalise(one.text), evaluator.recogniser.normalise(text))
        nearest = evaluator.nearest(voice)
        results.append(Result(system, one.key, one.text, text, errors, alike, one.speaker, nearest, duration_s))
    return Score(system, tuple(results))


def difference(first: Score, second: Score) -> tuple[float, Interval]:
    """Word error rate of the second minus the first on the same clips, and its paired bootstrap interval."""
    pairs = list(zip(first.results, second.results, strict=True))

    def less(chosen: Sequence[tuple[Result, Result]]) -> float:
        return _word_rate([after for _, after in chosen]) - _word_rate([before for before, _ in chosen])

    return less(pairs), interval(pairs, less)


def interval(results: Sequence[Any], figure: Callable[[Sequence[Any]], float | None]) -> Interval:
    """The 95 % bootstrap interval of a statistic of the results."""
    rng = np.random.default_rng(SEED)
    draws = [figure([results[i] for i in rng.integers(0, len(results), len(results))]) for _ in range(DRAWS)]
    low, high = np.percentile([draw for draw in draws if draw is not None], [2.5, 97.5])
    return float(low), float(high)


def shuffled(count: int) -> list[int]:
    """A random permutation with a fixed seed and without fixed points (unless count is 1)."""
    ring = np.random.default_rng(SEED).permutation(count)
    order = np.empty(count, int)
    order[ring] = np.roll(ring, 1)
    return order.tolist()


COLUMNS = (
    *("", "word error rate", "95 %", "errors/words", "without failures", "characters"),
    *("clips all right", "similarity", "voice match", "voices/clips"),
)


def with_short_texts(scores: Sequence[Score]) -> list[Score]:
    """Each score, followed by that of its short texts if it has both short and longer ones."""
    rows = []
    for one in scores:
        rows.append(one)
        short = tuple(result for result in one.results if result.errors.words <= SHORT_WORDS)
        if one.system not in CONTROLS and 0 < len(short) < one.clips:
            rows.append(Score(f"{one.system}, texts of 1 or {SHORT_WORDS} words", short))
    return rows


def table_rows(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """The cells under COLUMNS, with counts beside each rate."""
    rows = []
    for one in with_short_texts(scores):
        low, high = interval(one.results, _word_rate)
        rows.append(
            (
                one.system,
                f"{one.word_error_rate:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{one.errors}/{one.words}",
                f"{one.word_error_rate_without_failures:.1%} ({one.failures} excluded)",
                f"{one.character_error_rate:.1%}",
                f"{one.whole}/{one.clips}",
                "-" if one.similarity is None else f"{one.similarity:.3f}",
                f"{one.voice_match:.0%}",
                f"{one.matched}/{one.clips}",
            )
        )
    return rows


def format_table(scores: Sequence[Score]) -> str:
    """The scores as an aligned text table."""
    rows = [COLUMNS, *table_rows(scores)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    widths[0] *= -1  # left-aligned
    return "\n".join(
        "  ".join(f"{cell:{'<' if width < 0 else '>'}{abs(width)}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def to_report(scores: Sequence[Score], about: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-serialisable: scores and how they were measured."""
    return {**about, "scores": [one.to_dict() for one in with_short_texts(scores)]}


def _word_rate(results: Sequence[Result]) -> float:
    return sum(one.errors.words_wrong for one in results) / max(1, sum(one.errors.words for one in results))


def _similarity(results: Sequence[Result]) -> float | None:
    known = [one.similarity for one in results if one.similarity is not None]
    return float(np.mean(known)) if known else None
