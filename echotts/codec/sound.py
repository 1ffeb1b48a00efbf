"""Recordings of any length as streams of blocks: reading with resampling, measuring loudness, writing.

Arrays are (channels, samples), float32, full scale 1. Loudness: ITU-R BS.1770-4, integrated, over all channels.
"""

import logging
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from echotts.audio import check_suffix
from echotts.audio.reading import LOUDEST, check_whole, count_unusable, open_recording
from echotts.audio.writing import BLOCK_FRAMES, FORMATS, MP3_RATE_KBPS, fix_ogg_serial, mp3_level, synthetic_tags
from echotts.files import atomic_write

log = logging.getLogger(__name__)

Block = Float[np.ndarray, "c n"]

SILENT_LUFS = -70.0  # BS.1770's absolute gate: quieter blocks do not count
_LARGEST_WAV_BYTES = 4_000_000_000
_CHANNEL_WEIGHTS = (1.0, 1.0, 1.0, 1.41, 1.41)  # left, right, centre, surrounds; further channels have weight 1


class SoundFile:
    """A recording on disk, read in blocks at its own rate or resampled.

    Raises FileNotFoundError and ValueError like audio.read_audio, but accepts any length.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._sound = open_recording(self.path)
        self.sample_rate, self.channels = self._sound.rate, self._sound.channels
        self.samples = self._sound.frames  # per channel, from the header; None if unknown; exact once read

    def blocks(self, rate: int | None = None) -> Iterator[Block]:
        """The whole recording in blocks of about a second, at `rate` Hz (default: its own rate).

        Raises ValueError if it is empty, truncated or contains values that are not finite.
        """
        resampler = Resampler(self.sample_rate, rate or self.sample_rate, self.channels)
        count = 0
        for block in self._sound.blocks():
            if bad := count_unusable(block):
                raise ValueError(
                    f"{self.path}: {bad} samples from sample {count} on are not finite or above {LOUDEST:g} times full "
                    "scale"
                )
            count += len(block)
            yield resampler.push(block.T)
        check_whole(self._sound, str(self.path), count)
        self.samples = count
        if not count:
            raise ValueError(f"{self.path}: the recording is empty (0 samples)")
        yield resampler.finish()


class Resampler:
    """Band-limited resampling of a stream of blocks; the concatenated outputs are the resampled signal."""

    def __init__(self, rate: int, new_rate: int, channels: int) -> None:
        self._channels = channels
        self._stream = None if rate == new_rate else soxr.ResampleStream(rate, new_rate, channels, dtype="float32")

    def push(self, block: Block, last: bool = False) -> Float[np.ndarray, "c m"]:
        if self._stream is None:
            return block
        return self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last).reshape(-1, self._channels).T

    def finish(self) -> Block:
        return self.push(np.zeros((self._channels, 0), np.float32), last=True)


class LoudnessMeter:
    """Integrated loudness (BS.1770-4) and peak of a stream of blocks. Audio under 0.4 s is measured as if repeated."""

    def __init__(self, rate: int, channels: int) -> None:
        self._filters = _k_weighting(rate)
        self._states = [np.zeros((channels, 2)) for _ in self._filters]
        self._step = round(0.1 * rate)  # gating blocks of 0.4 s overlap by three quarters
        self._pending = np.zeros((channels, 0))
        self._powers: list[np.ndarray] = []  # per channel and step
        self._first = np.zeros((channels, 0), np.float32)
        self.peak = 0.0

    def push(self, block: Block) -> None:
        from scipy.signal import lfilter  # takes a second, which speaking does not need

        if not block.shape[1]:
            return
        self.peak = max(self.peak, float(np.abs(block).max()))
        if self._first.shape[1] < 4 * self._step:
            self._first = np.concatenate([self._first, block[:, : 4 * self._step]], axis=1)
        weighted = block.astype(np.float64)
        for number, (b, a) in enumerate(self._filters):
            weighted, self._states[number] = lfilter(b, a, weighted, zi=self._states[number])
        weighted = np.concatenate([self._pending, weighted], axis=1)
        steps = weighted.shape[1] // self._step
        whole = weighted[:, : steps * self._step].reshape(len(block), steps, self._step)
        self._powers.append(np.square(whole).mean(axis=2))
        self._pending = weighted[:, steps * self._step :]

    def loudness(self) -> float:
        """Integrated loudness in LUFS; SILENT_LUFS if nothing is above the absolute gate."""
        powers = np.concatenate(self._powers, axis=1) if self._powers else np.zeros((1, 0))
        if powers.shape[1] < 4:
            return self._of_short_sound()
        gated = np.lib.stride_tricks.sliding_window_view(powers, 4, axis=1).mean(axis=2)
        weights = np.ones(len(gated))
        weights[: len(_CHANNEL_WEIGHTS)] = _CHANNEL_WEIGHTS[: len(gated)]
        power = weights @ gated
        kept = power[_lufs(power) > SILENT_LUFS]
        if not len(kept):
            return SILENT_LUFS
        relative = _lufs(kept.mean()) - 10.0
        return float(_lufs(kept[_lufs(kept) > relative].mean()))

    def _of_short_sound(self) -> float:
        if not self._first.any():
            return SILENT_LUFS
        meter = LoudnessMeter(10 * self._step, len(self._first))
        meter.push(np.tile(self._first, -(-5 * self._step // self._first.shape[1])))
        return meter.loudness()


def measured_loudness(blocks: Iterator[Block], rate: int, channels: int) -> LoudnessMeter:
    """A meter that has measured all blocks."""
    meter = LoudnessMeter(rate, channels)
    for block in blocks:
        meter.push(block)
    return meter


class Spool:
    """Arrays (c, n, ...) that differ only in n, collected on disk and read back concatenated."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  stays open as long as the array is used
        self._like: np.ndarray | None = None
        self.count = 0

    def append(self, piece: np.ndarray) -> None:
        self._like, self.count = piece[:, :0], self.count + piece.shape[1]
        self._file.write(np.ascontiguousarray(piece.swapaxes(0, 1)).data)

    def array(self) -> np.ndarray:
        """The concatenated array, memory-mapped."""
        if self._like is None:
            raise ValueError("nothing was collected")
        shape = (self.count, len(self._like), *self._like.shape[2:])
        if not math.prod(shape):
            return self._like
        self._file.flush()
        return np.memmap(self._file, self._like.dtype, "r", shape=shape).swapaxes(0, 1)


def write_sound(
    path: str | Path,
    blocks: Iterable[Block],
    rate: int,
    channels: int,
    expected: int = 0,
    mp3_rate: int = MP3_RATE_KBPS,
    model: str | None = None,
) -> int:
    """Writes blocks as .wav, .flac (16 bit), .ogg or .mp3, clipped at full scale; returns the number of samples.

    The file appears only once it is complete. A .wav with an `expected` size (samples per channel) above 4 GB is
    written as RF64 (EBU 3306); `mp3_rate` is the bit rate of an .mp3 in kbit/s. `model` names the model that
    synthesised the samples, for the file's tags (see `audio.synthetic_tags`); None for other audio.
    Raises ValueError for an unknown suffix, no samples, or a rate or number of channels the format cannot hold.
    """
    path = check_suffix(path)
    options: dict[str, Any] = dict(FORMATS[path.suffix.lower()])
    if path.suffix.lower() == ".mp3":
        options = options | {"compression_level": mp3_level(mp3_rate, rate)}
    if path.suffix.lower() == ".wav" and 2 * channels * expected > _LARGEST_WAV_BYTES:
        options = options | {"format": "RF64"}
    written, peak = 0, 0.0
    options |= {"samplerate": rate, "channels": channels, "closefd": False}
    with atomic_write(path) as temporary, temporary.open("w+b") as opened:
        try:
            file = soundfile.SoundFile(opened.fileno(), "w", **options)
        except soundfile.SoundFileError as error:
            what = f"{rate} Hz, {channels} channels"
            raise ValueError(f"{path}: {options['format']} cannot hold {what} ({str(error).strip()})") from error
        try:
            with file:
                for name, text in ({} if model is None else synthetic_tags(model)).items():
                    setattr(file, name, text)
                for block in blocks:
                    for start in range(0, block.shape[1], BLOCK_FRAMES):
                        part = block[:, start : start + BLOCK_FRAMES]
                        peak = max(peak, float(np.abs(part).max()))
                        file.write(np.clip(part, -1.0, 1.0).T)
                        written += part.shape[1]
        except soundfile.SoundFileError as error:
            raise OSError(f"{path}: cannot be written ({str(error).strip()}): is the disk full?") from error
        if not written:
            raise ValueError(f"{path}: there are no samples to write")
        if options["format"] == "OGG":
            fix_ogg_serial(opened)
    if peak > 1.0:
        log.warning("%s: clipped at 1, the peak is %.2f", path, peak)
    return written


def _lufs(power: Any) -> Any:
    return -0.691 + 10.0 * np.log10(np.maximum(power, 1e-30))


def _k_weighting(rate: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two filters of BS.1770 at any rate (as in pyloudnorm): a 4 dB high shelf at 1.5 kHz, a high pass at 38 Hz."""
    filters = []
    for gain_db, quality, frequency, shelf in ((4.0, 0.5**0.5, 1500.0, True), (0.0, 0.5, 38.0, False)):
        amplitude = 10.0 ** (gain_db / 40.0)
        w = 2 * np.pi * frequency / rate
        alpha, cosine = np.sin(w) / (2 * quality), np.cos(w)
        if shelf:
            root = 2 * amplitude**0.5 * alpha
            plus, minus = amplitude + 1, amplitude - 1
            b = amplitude * np.array(
                [plus + minus * cosine + root, -2 * (minus + plus * cosine), plus + minus * cosine - root]
            )
            a = np.array([plus - minus * cosine + root, 2 * (minus - plus * cosine), plus - minus * cosine - root])
        else:
            b = np.array([(1 + cosine) / 2, -(1 + cosine), (1 + cosine) / 2])
            a = np.array([1 + alpha, -2 * cosine, 1 - alpha])
        filters.append((b / a[0], a / a[0]))
    return filters
