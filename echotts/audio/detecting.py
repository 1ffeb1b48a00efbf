"""Finds the watermark of `marking.py` in a recording, and how probable a false alarm is.

The logarithm of the power of each cell (5 ms in a band of 400 Hz) is compared with that of the same band 5 ms before
and after, divided by its local variance and, near the noise floor, reduced; cells a period apart are added. The score
of a message at an offset is the sum of these values a with the signs s that the message would have given them, divided
by its standard deviation: z = sum(s a) / sqrt(sum(a^2)).

In a recording that was made without the key, the signs are independent of the values. Whatever the values, such a sum
of random signs exceeds z with a probability of at most exp(-z^2 / 2) (Hoeffding). The best score of all offsets,
messages, sections and channels is compared with that, times their number (Bonferroni): an upper bound, not an estimate.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import uniform_filter1d

from echotts.audio.levels import Samples
from echotts.audio.marking import (
    BAND_HZ,
    BANDS,
    CHIPS,
    FRAME_S,
    LOWEST_HZ,
    MESSAGE_BITS,
    PERIOD_FRAMES,
    byte_signs,
    chip_cells,
    key_signs,
)

RATE_HZ = 8000  # at which recordings are examined
FALSE_ALARM = 1e-6  # a mark is found if the probability of a false alarm is at most this
_STEPS = 4  # offsets tried per frame
_STEP = round(RATE_HZ * FRAME_S / _STEPS)
_OFFSETS = PERIOD_FRAMES * _STEPS
_SECTION = 8 * _OFFSETS * _STEP  # samples that are examined at once, 10 s: more periods than that may drift apart
_QUIET_SHARE = 0.1  # of a section, taken as its noise floor
_LEAST_DEVIATION = 0.05  # in nepers: cells more even than that do not count more
_SMALLEST = 1e-300


@dataclass(frozen=True)
class Detection:
    """The message found in a recording, or None; the best score z, and an upper bound of the probability of it."""

    message: str | None
    score: float
    false_alarm: float


class Detector:
    """Examines a recording that arrives in blocks (channels, samples) at RATE_HZ; memory does not grow with length.

    Every section of 10 s is examined alone, and all together: for a mark in a part, and for one in noise.
    """

    def __init__(self, channels: int) -> None:
        self._pending = np.zeros((channels, 0), np.float32)
        self._total = np.zeros((channels, _OFFSETS, BANDS))
        self._best = (0.0, 0)  # score and message
        self._tests = 0

    def push(self, block: Float[np.ndarray, "c n"]) -> None:
        self._pending = np.concatenate([self._pending, block], axis=1)
        while self._pending.shape[1] >= _SECTION:
            self._examine(self._pending[:, :_SECTION])
            self._pending = self._pending[:, _SECTION:]

    def finish(self) -> Detection:
        """The result for all that was pushed."""
        if self._pending.shape[1]:
            self._examine(self._pending)
        if self._tests > len(self._total):  # more than one section
            for total in self._total:
                self._try(total)
        (score, message), tests = self._best, self._tests * _OFFSETS * 2**MESSAGE_BITS
        bound = min(1.0, max(tests * np.exp(-(score**2) / 2), _SMALLEST))
        return Detection(f"{message:0{MESSAGE_BITS}b}" if bound <= FALSE_ALARM else None, score, float(bound))

    def _examine(self, section: Float[np.ndarray, "c n"]) -> None:
        for channel, samples in enumerate(section):
            values = cell_values(samples)
            values = np.pad(values, ((0, -len(values) % _OFFSETS), (0, 0))).reshape(-1, _OFFSETS, BANDS).sum(axis=0)
            self._total[channel] += values
            self._try(values)

    def _try(self, values: Float[np.ndarray, "o bands"]) -> None:
        self._tests += 1
        self._best = max(self._best, best_message(values))


def cell_values(samples: Samples) -> Float[np.ndarray, "f bands"]:
    """By how much each cell is louder than those of the frames before and after, in deviations; four per frame."""
    width = 2 * _STEPS * _STEP
    padded = np.pad(samples.astype(np.float32), (width // 2, width))
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[: len(samples) : _STEP]
    spectra = np.fft.rfft(windows * np.sqrt(np.hanning(width + 1)[:-1]).astype(np.float32))
    bins = np.square(np.abs(spectra)).astype(np.float64)
    first, count = LOWEST_HZ * width // RATE_HZ, BAND_HZ * width // RATE_HZ
    powers = bins[:, first : first + BANDS * count].reshape(len(bins), BANDS, count).sum(axis=2)
    floor = 2 * np.quantile(powers, _QUIET_SHARE, axis=0) + 1e-6 * powers.max() + _SMALLEST
    levels = 0.5 * np.log(powers + floor)
    around = np.pad(levels, ((_STEPS, _STEPS), (0, 0)), mode="edge")
    excess = levels - 0.5 * (around[: -2 * _STEPS] + around[2 * _STEPS :])
    variance = uniform_filter1d(np.square(excess), 2 * _STEPS + 1, axis=0) + _LEAST_DEVIATION**2
    return excess / variance * powers / (powers + 6 * floor)


def best_message(values: Float[np.ndarray, "o bands"]) -> tuple[float, int]:
    """The score and the number of the best message, over all offsets, of the values of one period."""
    cells = values.astype(np.float32).reshape(-1)[_places()] * key_signs()[chip_cells()]
    chips = cells.sum(axis=2).reshape(_OFFSETS, 2, CHIPS // 2)
    scores = chips @ byte_signs()
    deviations = np.sqrt(np.square(cells).sum(axis=(1, 2))) + 1e-30
    total = scores.max(axis=2).sum(axis=1) / deviations
    offset = int(total.argmax())
    high, low = scores[offset].argmax(axis=1)
    return float(total[offset]), int(high) << 8 | int(low)


@functools.cache
def _places() -> Int[np.ndarray, "o chips n"]:
    """Where in the values of a period the cells of each chip are, if the period begins at offset o."""
    frames, bands = np.divmod(chip_cells(), BANDS)
    offsets = (np.arange(_OFFSETS)[:, None, None] + _STEPS * frames) % _OFFSETS
    return (offsets * BANDS + bands).astype(np.int32)
