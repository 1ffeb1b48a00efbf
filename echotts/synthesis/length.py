"""How long speech will be: the window of latent frames in which an utterance is synthesised.

A model fills a window and ends speech with silence in it, so a window only has to be long enough, and a short one is
faster. Its length follows from the model's duration predictor or, without one, from the characters of the text and the
rate of the reference. Speech without an end in its window is synthesised again in the longest one, so a wrong
prediction costs time, but no word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of the model's window, the sizes that are compiled
SHORTEST_S = 1.0  # no window is shorter, unless the model's is
MARGIN, ESTIMATE_MARGIN = 1.25, 1.75  # a window is so many times the predicted duration, or the estimated one
SPARE_FRAMES = 4  # in addition to the margin and to the silence that ends speech
SLOWEST, FASTEST = 0.5, 2.0  # speeds at which speech stays speech
DEFAULT_PIECE_S = 15.0  # long texts are cut into pieces of at most this duration


@dataclass(frozen=True, kw_only=True)
class AutoDuration:
    """Windows by predicted duration: times `scale`, at least `least_s` seconds, and never above `most_s` seconds.

    Speech that is longer than `most_s` is cropped; None: only the model's window limits it.
    """

    scale: float = 1.0
    least_s: float = 0.0
    most_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale < np.inf:
            raise ValueError(f"duration scale {self.scale}: give a factor above 0")
        if not 0 <= self.least_s < np.inf:
            raise ValueError(f"least duration {self.least_s} s: give seconds from 0")
        if self.most_s is not None and not max(0.0, self.least_s) < self.most_s < np.inf:
            raise ValueError(f"most duration {self.most_s} s: give seconds above 0 and above the least")

    def limited(self, seconds: float) -> float:
        """The duration to make room for, from a predicted one."""
        return float(np.clip(self.scale * seconds, self.least_s, self.most_s))


Duration = float | Literal["auto"] | AutoDuration
"""Maximum seconds of each piece of speech, or how to find them; "auto" is AutoDuration()."""


def as_duration(duration: Duration) -> float | AutoDuration:
    """The argument, checked. ValueError if it is not possible."""
    if duration == "auto":
        return AutoDuration()
    if isinstance(duration, AutoDuration):
        return duration
    if isinstance(duration, bool | str) or not 0 < duration < np.inf:
        raise ValueError(f'duration {duration}: give the maximum duration in seconds, above 0, or "auto"')
    return float(duration)


def check_speed(speed: float) -> float:
    """Returns `speed`; ValueError if it is not possible."""
    if not SLOWEST <= speed <= FASTEST:
        raise ValueError(f"speed {speed}: give a factor from {SLOWEST} to {FASTEST}")
    return speed


def piece_limit_s(duration: float | AutoDuration) -> float:
    """The longest piece of a long text, in seconds."""
    if isinstance(duration, AutoDuration):
        return DEFAULT_PIECE_S if duration.most_s is None else duration.most_s
    return duration


def window_sizes(longest: int, frame_rate_hz: float) -> list[int]:
    """The windows that are compiled for a model, in frames, shortest first."""
    sizes = {-(-round(8 * share) * longest // 8) for share in SHARES}
    return sorted(size for size in sizes if size >= SHORTEST_S * frame_rate_hz or size == longest)


def size_for(frames: float, sizes: Sequence[int]) -> int:
    """The smallest window with so many frames; the longest if there is none."""
    return next((size for size in sizes if size >= frames), sizes[-1])
