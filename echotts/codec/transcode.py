"""Recordings of any length and number of channels to tokens and back, in constant memory.

Channels become rows of the codec's batch and come back as channels. Intermediate results go to a temporary file.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from echotts.audio import MP3_RATE_KBPS
from echotts.codec.sound import SILENT_LUFS, Block, LoudnessMeter, Resampler, SoundFile, write_sound
from echotts.codec.tokens import Encoded
from echotts.codec.unpadded import decode_chunk
from echotts.codec.windows import DecoderStream, EncoderStream

if TYPE_CHECKING:
    from echotts.codec.codec import Codec

Progress = Callable[[float], None]
"""Called periodically with the number of further seconds of audio processed."""

LOUDNESS_LUFS = -16.0


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


def encode_sound(
    codec: "Codec",
    path: str | Path,
    n_quantizers: int | None = None,
    loudness: float | None = None,
    progress: Progress = lambda seconds: None,
) -> Encoded:
    """A recording's tokens: codes for DAC, posterior means for DACVAE.

    With `loudness` (LUFS) the recording is first normalised to that level, limited so that the peak stays at or below
    1, and its original level is stored with the tokens; the file is then read twice. Errors are those of `SoundFile`.
    """
    sound = SoundFile(path)
    gain, measured = 1.0, None
    if loudness is not None:
        meter = measured_loudness(sound.blocks(codec.sample_rate), codec.sample_rate, sound.channels)
        measured = meter.loudness()
        gain = 1.0 if measured <= SILENT_LUFS else 10.0 ** ((loudness - measured) / 20.0)
        gain = min(gain, 1.0 / max(meter.peak, 1e-9))
    widths = (codec.window_frames,)
    stream = EncoderStream(codec.params, codec.config, sound.channels, widths, codec.check_quantizers(n_quantizers))
    spool = Spool()
    for block in sound.blocks(codec.sample_rate):
        _collect(spool, stream.push(np.float32(gain) * block), codec)
        progress(block.shape[1] / codec.sample_rate)
    _collect(spool, stream.finish(), codec)
    tokens = spool.array()
    return Encoded(
        tokens=tokens.swapaxes(1, 2) if codec.config.quantized else tokens,
        sample_rate=sound.sample_rate,
        original_length=sound.samples,
        loudness_lufs=measured,
        codec_id=codec.codec_id,
        weights_hash=codec.weights_hash,
    )


def decoded_blocks(
    codec: "Codec", encoded: Encoded, n_quantizers: int | None = None, message: np.ndarray | None = None
) -> Iterator[Block]:
    """Audio decoded from tokens, window by window, at the codec's rate and level. ValueError for another codec's.

    `message` (bits,) of 0 and 1 is embedded in every channel as a watermark.
    """
    check_tokens(codec, encoded)
    n_quantizers = codec.check_quantizers(n_quantizers)
    if encoded.chunk_length is not None:
        yield from _chunks(codec, encoded, n_quantizers)
        return
    rows = len(encoded.tokens)
    messages = None if message is None else codec.check_message(np.tile(message, (rows, 1)), rows)
    stream = DecoderStream(codec.params, codec.config, rows, (codec.window_frames,), messages)
    for start in range(0, encoded.frames, codec.window_frames):
        part = np.s_[start : start + codec.window_frames]
        piece = encoded.tokens[:, :n_quantizers, part] if encoded.are_codes else encoded.tokens[:, part]
        yield stream.push(np.ascontiguousarray(piece))
    yield stream.finish()


def restored_blocks(
    codec: "Codec", encoded: Encoded, n_quantizers: int | None = None, progress: Progress = lambda seconds: None
) -> Iterator[Block]:
    """The recording with its loudness, rate and length. Decoded audio waits in a file until its loudness is known."""
    rate, channels = encoded.sample_rate or codec.sample_rate, len(encoded.tokens)
    spool, meter = Spool(), LoudnessMeter(codec.sample_rate, channels)
    for block in decoded_blocks(codec, encoded, n_quantizers):
        meter.push(block)
        spool.append(block)
        progress(block.shape[1] / codec.sample_rate)
    gain = 1.0
    if encoded.loudness_lufs is not None and meter.loudness() > SILENT_LUFS:
        gain = 10.0 ** ((encoded.loudness_lufs - meter.loudness()) / 20.0)
    sound = spool.array()
    resampler, left = Resampler(codec.sample_rate, rate, channels), encoded.original_length

    def resampled() -> Iterator[Block]:
        for start in range(0, sound.shape[1], codec.sample_rate):
            yield resampler.push(np.float32(gain) * sound[:, start : start + codec.sample_rate])
        yield resampler.finish()

    for block in resampled():
        cut = block if left is None else block[:, :left]
        left = None if left is None else left - cut.shape[1]
        yield cut
    if left:
        yield np.zeros((channels, left), np.float32)  # DAC at 16 and 24 kHz decodes 8 samples fewer


def restore_to_file(
    codec: "Codec",
    encoded: Encoded,
    path: str | Path,
    n_quantizers: int | None = None,
    progress: Progress = lambda seconds: None,
    mp3_rate: int = MP3_RATE_KBPS,
) -> int:
    """Writes the restored recording; returns the number of samples per channel."""
    rate, channels = encoded.sample_rate or codec.sample_rate, len(encoded.tokens)
    blocks = restored_blocks(codec, encoded, n_quantizers, progress)
    return write_sound(path, blocks, rate, channels, encoded.original_length or 0, mp3_rate)


def check_tokens(codec: "Codec", encoded: Encoded) -> None:
    """Raises ValueError if the tokens belong to another codec, by weights hash or by shape and range."""
    if encoded.weights_hash is not None and encoded.weights_hash != codec.weights_hash:
        name = encoded.codec_id or "another codec"
        raise ValueError(
            f"the tokens are from {name}, weights {encoded.weights_hash[:12]}, not from codec {codec.codec_id}"
        )
    if encoded.are_codes != codec.config.quantized:
        kind = "codes" if encoded.are_codes else "latents"
        raise ValueError(
            f"the tokens are {kind}, which codec {codec.codec_id} cannot decode: name the codec that made them"
        )
    tokens = encoded.tokens
    config = codec.config
    if not encoded.are_codes:
        if tokens.shape[2] != codec.latent_channels:
            raise ValueError(
                f"latents have {tokens.shape[2]} channels, codec {codec.codec_id} has {codec.latent_channels}"
            )
    elif tokens.shape[1] > config.n_codebooks or not 0 <= tokens.min() <= tokens.max() < config.codebook_size:
        raise ValueError(
            f"the tokens have {tokens.shape[1]} codebooks with codes {tokens.min()} to {tokens.max()}: "
            f"codec {codec.codec_id} has {config.n_codebooks} of {config.codebook_size}"
        )


def measured_loudness(blocks: Iterator[Block], rate: int, channels: int) -> LoudnessMeter:
    """A meter that has measured all blocks."""
    meter = LoudnessMeter(rate, channels)
    for block in blocks:
        meter.push(block)
    return meter


def _collect(spool: Spool, outputs: tuple[np.ndarray, np.ndarray], codec: "Codec") -> None:
    first, second = outputs
    spool.append(second.swapaxes(1, 2).astype(np.uint16) if codec.config.quantized else first)


def _chunks(codec: "Codec", encoded: Encoded, n_quantizers: int | None) -> Iterator[Block]:
    """Decodes each chunk alone and without padding, as descript-audio-codec encodes audio longer than one window."""
    length = encoded.chunk_length or encoded.frames
    for start in range(0, encoded.frames, length):
        codes = encoded.tokens[:, :n_quantizers, start : start + length]
        yield np.asarray(decode_chunk(codec.params, codec.config, np.ascontiguousarray(codes).astype(np.int32)))
