"""Static shapes for utterances: sizes rounded up to a few steps, padded rows."""

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

SLOW_COMPILE_S = 2.0

logger = logging.getLogger(__name__)


def rounded(size: int, largest: int, parts: int) -> int:
    """`size` rounded up to the next of `parts` equal steps up to `largest`, to limit the number of compiled shapes."""
    step = -(-largest // parts)
    return min(-(-size // step) * step, largest)


def padded_tokens(
    rows: Sequence[Int[np.ndarray, " _n"]], width: int
) -> tuple[Int[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]:
    """Token ids padded with zeros, and the mask from their lengths (0 is also BOS)."""
    ids = np.zeros((len(rows), width), np.int32)
    lengths = np.array([[len(row)] for row in rows])
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, np.arange(width) < lengths


def padded_references(
    references: Sequence[Float[np.ndarray, "_m c"] | None], frames: int, channels: int
) -> tuple[Float[np.ndarray, "b m c"], Bool[np.ndarray, "b m"]]:
    """References padded with zeros; a missing one has an empty mask, like a dropped condition in training."""
    latent = np.zeros((len(references), frames, channels), np.float32)
    lengths = np.zeros((len(references), 1), int)
    for row, reference in enumerate(references):
        if reference is not None:
            latent[row, : len(reference)] = reference
            lengths[row] = len(reference)
    return latent, np.arange(frames) < lengths


def make_noise(seed: int, frames: int, channels: int) -> Float[np.ndarray, "t c"]:
    """Standard normal noise for one utterance. The noise of a longer window starts with that of a shorter one."""
    return np.random.default_rng(seed).standard_normal((frames, channels), dtype=np.float32)


class CompileNotice:
    """Logs a line if the first call with a shape compiles for long; other calls are fast."""

    def __init__(self) -> None:
        self._compiled: set[tuple[int, int, float]] = set()

    @contextlib.contextmanager
    def __call__(self, rows: int, tokens: int, seconds: float) -> Iterator[None]:
        shape = (rows, tokens, seconds)
        line = "compiling for batches of %d, up to %d tokens and %.1f s of speech; the result is cached"
        timer = threading.Timer(SLOW_COMPILE_S, logger.info, (line, *shape))
        timer.daemon = True
        if shape not in self._compiled:
            timer.start()
        try:
            yield
            self._compiled.add(shape)
        finally:
            timer.cancel()
