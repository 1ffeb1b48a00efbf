"""Several candidates of one utterance, synthesised in one batch, of which one is chosen."""

from collections.abc import Callable, Sequence

import numpy as np

from echotts.synthesis.speech import Speech

SEED_STEP = 2**32  # between the seeds of two candidates; pieces of a text have consecutive ones

Choose = Callable[[str, Sequence[Speech], np.ndarray | None], int]
"""Given the text, the candidates and the latents of the voice (None: from the seed), the number of the best one."""


def from_median_s(speeches: Sequence[Speech]) -> list[float]:
    """How far each candidate is from the median duration, in seconds: failures are too short or too long."""
    durations = np.array([speech.duration_s for speech in speeches])
    return [float(distance) for distance in np.abs(durations - np.median(durations))]


def choose_by_duration(text: str, speeches: Sequence[Speech], voice: np.ndarray | None) -> int:
    """The candidate whose duration is nearest to the median; the first of several."""
    return int(np.argmin(from_median_s(speeches)))
