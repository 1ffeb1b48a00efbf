"""Ranks candidates of the same utterance: by word errors, then by similarity to the voice, then by duration.

What is not installed is left out: words need the extras asr and eval, similarity the weights in Resemblyzer's wheel and
a reference. Without both, the candidate of median duration is chosen.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from echotts.audio import Samples
from echotts.evaluation.asr import INSTALL_HINT, Recogniser, listen, load_recogniser
from echotts.evaluation.voices import VoiceEncoder, find_weights
from echotts.synthesis.candidates import from_median_s
from echotts.synthesis.speech import Speech

MODEL = "base"

logger = logging.getLogger(__name__)


@dataclass
class Score:
    """Sums over the chosen candidates of one or several pieces. None: not measured."""

    word_errors: int | None = None
    words: int | None = None
    similarity: float | None = None


class Ranking:
    """Chooses the best of several candidates; `score` has the figures of the choices since it was last reset.

    `decode` turns the latents of a voice (1, m, c) into audio (1, n) at `rate`.
    """

    def __init__(
        self,
        ear: Recogniser | None,
        encoder: VoiceEncoder | None,
        decode: Callable[[np.ndarray], np.ndarray],
        rate: int,
    ) -> None:
        self._ear, self._encoder, self._decode, self._rate = ear, encoder, decode, rate
        self._voices: dict[bytes, Float[np.ndarray, " e"]] = {}
        self._similarities: list[float] = []
        self.score = Score()

    def reset(self) -> Score:
        """The score since the last reset."""
        score, self.score, self._similarities = self.score, Score(), []
        return score

    def __call__(self, text: str, speeches: Sequence[Speech], voice: np.ndarray | None) -> int:
        heard = (
            None
            if self._ear is None
            else [listen(self._ear, text, speech.samples, speech.sample_rate) for speech in speeches]
        )
        similar = None if self._encoder is None or voice is None else self._similarity(speeches, voice)
        distances = from_median_s(speeches)

        def rank(number: int) -> tuple[int, float, float, int]:
            errors = heard[number].words_wrong if heard else 0
            return errors, -similar[number] if similar else 0.0, distances[number], number

        best = min(range(len(speeches)), key=rank)
        if heard:
            self.score.word_errors = (self.score.word_errors or 0) + heard[best].words_wrong
            self.score.words = (self.score.words or 0) + heard[best].words
        if similar:
            self._similarities.append(similar[best])
            self.score.similarity = round(float(np.mean(self._similarities)), 4)
        return best

    def _similarity(self, speeches: Sequence[Speech], voice: np.ndarray) -> list[float]:
        """Cosine similarity of each candidate to the voice."""
        assert self._encoder is not None
        key = voice.tobytes()
        if key not in self._voices:
            self._voices = {key: self._embedded([np.asarray(self._decode(voice[None]), np.float32)[0]])[0]}
        return [float(one @ self._voices[key]) for one in self._embedded([speech.samples for speech in speeches])]

    def _embedded(self, recordings: Sequence[Samples]) -> Float[np.ndarray, "b e"]:
        assert self._encoder is not None
        return self._encoder.embed([(samples, self._rate) for samples in recordings])


def load_ranking(decode: Callable[[np.ndarray], np.ndarray], rate: int, language: str = "en") -> Ranking:
    """A ranking by all that is installed; what is missing is logged."""
    ear = encoder = None
    if all(map(importlib.util.find_spec, ("faster_whisper", "whisper_normalizer", "jiwer"))):
        ear = load_recogniser(MODEL, language)
    else:
        logger.warning("candidates are not ranked by their words: %s", INSTALL_HINT.replace("asr", "asr,eval"))
    try:
        encoder = VoiceEncoder(find_weights())
    except ModuleNotFoundError as error:
        logger.warning("candidates are not ranked by similarity: %s", error)
    return Ranking(ear, encoder, decode, rate)
