"""Text from standard input as it arrives, and speech to standard output as it is made."""

import codecs
import io
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np

from echotts.cli.app import UsageError
from echotts.synthesis import Speech

_READ_BYTES = 1 << 16
_OPEN_LENGTH = 0xFFFFFFFF  # in a .wav of unknown length, as FFmpeg writes and reads it


def check_standard_output() -> None:
    """UsageError if standard output is a terminal."""
    if sys.stdout.isatty():
        raise UsageError("--output -: standard output is a terminal: pipe it into a player, or give the name of a file")


def arriving_text() -> Iterator[str]:
    """What standard input has, whenever it has some more. ValueError with the byte of invalid UTF-8."""
    decoder, count = codecs.getincrementaldecoder("utf-8-sig")(), 0
    stream, data = cast(io.BufferedReader, sys.stdin.buffer), b"?"
    while data:
        data = stream.read1(_READ_BYTES)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input: not UTF-8 at byte {count - pending + error.start + 1}") from None
        count += len(data)
        if text:
            yield text


def write(blocks: Iterable[Speech], form: str, level: str) -> str:
    """Writes blocks to standard output as they come, after a header if `form` is wav; returns a line of figures.

    Raises BrokenPipeError if the reader left, ValueError for samples that are not finite.
    """
    from echotts.audio.levels import normalise_output

    began, first_s, count, rate = time.perf_counter(), 0.0, 0, 0
    for block in blocks:
        samples = np.clip(normalise_output(block.samples, block.sample_rate, level), -1.0, 1.0)
        if not np.isfinite(samples).all():
            raise ValueError(f"standard output: samples from {count} on are not finite (NaN or infinite)")
        if not count:
            first_s, rate = time.perf_counter() - began, block.sample_rate
            sys.stdout.buffer.write(_header(rate, block.model) if form == "wav" else b"")
        sys.stdout.buffer.write(np.rint(samples * 32767).astype("<i2").tobytes())
        sys.stdout.buffer.flush()
        count += len(samples)
    took_s = time.perf_counter() - began
    return (
        f"standard output: {count / rate:.2f} s at {rate} Hz, first audio after {first_s:.2f} s, "
        f"synthesised in {took_s:.2f} s"
    )


def _header(rate: int, model: str | None) -> bytes:
    """The header of a 16-bit mono .wav of unknown length, with the tags of synthetic speech (LIST/INFO)."""
    from echotts.audio import synthetic_tags

    tags = b"INFO"
    for name, value in zip((b"ISFT", b"ICMT"), synthetic_tags(model or "unknown").values(), strict=True):
        text = value.encode() + b"\0"
        tags += name + struct.pack("<I", len(text)) + text + bytes(len(text) % 2)
    sound = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    listed = b"LIST" + struct.pack("<I", len(tags)) + tags
    opened = struct.pack("<I", _OPEN_LENGTH)
    return b"RIFF" + opened + b"WAVE" + sound + listed + b"data" + opened
