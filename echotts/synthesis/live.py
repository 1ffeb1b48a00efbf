"""Speech that is handed out while it is being made: pieces decoded window by window, in blocks of samples.

As in long texts (longform.py) the pieces have one voice, one loudness and a pause after each, but nothing waits for the
end of a piece: silence at its edges is found in the latents, and its gain follows from its first LEVEL_S seconds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from echotts.audio import Samples, measure_loudness
from echotts.audio.marking import Marker, marked_blocks
from echotts.synthesis.longform import EDGE_S, PAUSE_S, edge_ramp, gain_to
from echotts.synthesis.speech import Speech
from echotts.text.sentences import Piece

LEVEL_S = 2.0  # of a piece after the first that are decoded before its gain is known


@dataclass(frozen=True, eq=False)
class Utterance:
    """A piece whose latents are known, and whose `count` samples are still being decoded."""

    latents: Float[np.ndarray, "t c"]
    blocks: Iterator[Samples]
    count: int


Say = Callable[[int, Piece, np.ndarray | None], Utterance]
"""Says the piece with this number in a voice: a reference's latents (m, c), or None for a voice from the seed."""


def live_blocks(
    pieces: Iterable[Piece],
    voice: np.ndarray | None,
    say: Say,
    rate: int,
    model: str,
    speed: float = 1.0,
    message: Sequence[int] | None = None,
) -> Iterator[Speech]:
    """Yields the blocks of all pieces. The pause after a piece is yielded when the next one is due.

    All carry the watermark `message`, if given. The latents of a piece are those of its first block; its other blocks
    have none. Pauses are `speed` times as short.
    """
    level, pause, start = _Level(rate), 0, 0
    for number, piece in enumerate(pieces):
        said = say(number, piece, voice)
        voice = said.latents if voice is None else voice
        latents = said.latents
        if pause:
            yield Speech(np.zeros(pause, np.float32), rate, latents[:0], model)
        start += pause
        blocks = level.applied(faded(said.blocks, said.count, round(EDGE_S * rate)))
        for block in marked_blocks(blocks, Marker(rate, message, start)):
            yield Speech(block, rate, latents, model)
            latents = latents[:0]
        start += said.count
        pause = round(PAUSE_S[piece.ends] / speed * rate)


def cropped(blocks: Iterable[Float[np.ndarray, "1 _n"]], first: int, end: int) -> Iterator[Samples]:
    """The samples from `first` to `end` of the only row of decoded blocks; later blocks are not computed."""
    start = 0
    for block in blocks:
        samples = np.asarray(block, np.float32)[0, max(0, first - start) : max(0, end - start)]
        start += block.shape[1]
        if len(samples):
            yield samples
        if start >= end:
            return


def faded(blocks: Iterable[Samples], count: int, width: int) -> Iterator[Samples]:
    """Blocks of `count` samples in total, with the first and last `width` samples faded in and out."""
    rise = edge_ramp(min(width, count // 2))
    tail = count - len(rise)
    start = 0
    for block in blocks:
        block = block.copy()
        head = rise[start : start + len(block)]
        block[: len(head)] *= head
        first = max(0, tail - start)
        fall = rise[::-1][start + first - tail :][: len(block) - first] if first < len(block) else rise[:0]
        block[first : first + len(fall)] *= fall
        start += len(block)
        yield block


class _Level:
    """Brings every piece to the loudness of the first one."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._lufs: float | None = None

    def applied(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        held: list[Samples] = []
        if self._lufs is None:
            for block in blocks:
                held.append(block)
                yield block
            loudness = measure_loudness(np.concatenate(held), self._rate) if held else -np.inf
            self._lufs = loudness if np.isfinite(loudness) else None
            return
        gain: np.float32 | None = None
        for block in blocks:
            if gain is not None:
                yield block * gain
                continue
            held.append(block)
            if sum(map(len, held)) >= LEVEL_S * self._rate:
                heard = np.concatenate(held)
                gain = gain_to(self._lufs, heard, self._rate)
                yield heard * gain
        if gain is None and held:
            heard = np.concatenate(held)
            yield heard * gain_to(self._lufs, heard, self._rate)
