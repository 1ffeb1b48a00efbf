"""The watermark of speech: a keyed pattern of small gains over time and frequency that carries a 16-bit message.

Frames of 5 ms in 8 bands from 300 to 3500 Hz become DEPTH_DB louder or softer, by pseudo-random signs that are repeated
after 1.28 s. The change is a share of the speech itself at the same place of the spectrum: it is masked, it scales with
the level, and silence stays silence. `detecting.py` finds the mark at any level and cut. Time is linear.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from echotts.audio.levels import Samples

MESSAGE = (1, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0, 0)  # what echotts embeds unless another is given
MESSAGE_BITS = 16
DEPTH_DB = 0.6
KEY = b"echotts: this speech is synthetic"
FRAME_S = 0.005
PERIOD_FRAMES = 256
LOWEST_HZ, BAND_HZ, BANDS = 300, 400, 8
CHIPS = 512  # groups of cells (frame, band) that share a sign of the message; 256 for each of its two bytes


class Marker:
    """Embeds a message in speech that arrives in blocks; with None, blocks pass unchanged.

    The concatenated outputs of `push` and `finish` are as long as the input, and the same for any division into blocks.
    `start` is the position of the first sample in a longer recording, at whose beginning the pattern begins.
    """

    def __init__(self, rate: int, message: Sequence[int] | None, start: int = 0) -> None:
        self._frame = rate * FRAME_S
        self._width = 2 * int(self._frame)  # of a window; windows of every other frame do not overlap
        self._window = np.sqrt(np.hanning(self._width + 1)[:-1]).astype(np.float32)
        self._gains = None if message is None else _gains(tuple(message), self._width, rate)
        self._next = int((start - self._width) // self._frame)  # the frame to modify next
        self._begin = self._first(self._next)  # position of the first pending sample
        self._unreal = start - self._begin  # pending samples before the start
        self._pending = np.zeros(self._unreal, np.float32)
        self._change = np.zeros(self._unreal, np.float32)  # to be added to the pending samples

    def push(self, samples: Samples) -> Samples:
        """The samples that no further frame changes, possibly none."""
        if self._gains is None:
            return samples
        self._pending = np.concatenate([self._pending, samples], dtype=np.float32)
        self._change = np.concatenate([self._change, np.zeros(len(samples), np.float32)])
        end = self._begin + len(self._pending)
        last = int((end - self._width / 2) // self._frame)
        while self._first(last) + self._width > end:
            last -= 1
        if last < self._next:
            return self._pending[:0]
        self._modify(np.arange(self._next, last + 1), self._gains)
        self._next = last + 1
        return self._taken(self._first(self._next) - self._begin)

    def finish(self) -> Samples:
        """The remaining samples."""
        count = len(self._pending) - self._unreal
        return self.push(np.zeros(2 * self._width, np.float32))[:count]

    def _first(self, frame: int) -> int:
        """Position of the first sample of a frame's window."""
        return round(frame * self._frame) - self._width // 2

    def _modify(self, frames: Int[np.ndarray, " f"], gains: Float[np.ndarray, "p k"]) -> None:
        firsts = np.rint(frames * self._frame).astype(np.int64) - self._width // 2 - self._begin
        places = firsts[:, None] + np.arange(self._width)
        spectra = np.fft.rfft(self._pending[places] * self._window)
        changes = np.fft.irfft(spectra * gains[frames % PERIOD_FRAMES], self._width) * self._window
        for parity in (0, 1):  # within one, no sample has two windows
            self._change[places[parity::2]] += changes[parity::2].astype(np.float32)

    def _taken(self, count: int) -> Samples:
        """Removes the first `count` pending samples; returns them with their changes."""
        real = slice(min(self._unreal, count), count)
        marked = self._pending[real] + self._change[real]
        self._unreal -= real.start
        self._begin += count
        self._pending, self._change = self._pending[count:], self._change[count:]
        return marked


def marked(samples: Samples, rate: int, message: Sequence[int] | None, start: int = 0) -> Samples:
    """A whole piece with the message embedded; see `Marker`."""
    return np.concatenate(list(marked_blocks([samples], Marker(rate, message, start))) or [samples])


def marked_blocks(blocks: Iterable[Samples], marker: Marker) -> Iterator[Samples]:
    """The blocks of a piece as the marker returns them; none is empty."""
    for block in blocks:
        if len(block := marker.push(block)):
            yield block
    if len(rest := marker.finish()):
        yield rest


@functools.cache
def key_signs() -> Float[np.ndarray, " n"]:
    """The key's sign for every cell of a period, frame by frame."""
    count = PERIOD_FRAMES * BANDS
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(KEY + b", signs").digest(count // 8), np.uint8))
    return 1.0 - 2.0 * bits.astype(np.float32)


@functools.cache
def chip_cells() -> Int[np.ndarray, "chips n"]:
    """The cells of each chip: a pseudo-random partition, so that any part of a period has some of every chip."""
    count = PERIOD_FRAMES * BANDS
    order = np.argsort(np.frombuffer(hashlib.shake_256(KEY + b", chips").digest(8 * count), "<u8"))
    return order.reshape(CHIPS, -1)


@functools.cache
def byte_signs() -> Float[np.ndarray, "bytes chips"]:
    """The signs by which chips carry a byte: rows of a Hadamard matrix, all orthogonal."""
    pair = np.array([[1.0, 1.0], [1.0, -1.0]], np.float32)
    return functools.reduce(np.kron, [pair] * 8)


@functools.lru_cache(maxsize=8)
def _gains(message: tuple[int, ...], width: int, rate: int) -> Float[np.ndarray, "p k"]:
    """By how much each bin of each frame of a period is amplified, less 1."""
    if len(message) != MESSAGE_BITS or set(message) - {0, 1}:
        raise ValueError(f"watermark: {message}: give {MESSAGE_BITS} numbers, 0 or 1")
    signs = np.empty(PERIOD_FRAMES * BANDS)
    signs[chip_cells()] = byte_signs()[np.packbits(message)].reshape(CHIPS, 1)
    signs = (signs * key_signs()).reshape(PERIOD_FRAMES, BANDS)
    band = (np.fft.rfftfreq(width, 1 / rate) - LOWEST_HZ) // BAND_HZ
    inside = (band >= 0) & (band < BANDS)
    gains = np.zeros((PERIOD_FRAMES, len(band)), np.float32)
    gains[:, inside] = 10.0 ** (DEPTH_DB / 20.0 * signs[:, band[inside].astype(int)]) - 1.0
    return gains
