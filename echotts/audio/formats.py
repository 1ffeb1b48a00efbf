"""The file formats behind `read_audio`. Each opener returns a `Sound`; its length is known only if a header gives it.

libsndfile decodes wav, flac, ogg, opus, mp3, aiff and NIST; PyAV (FFmpeg), if installed, m4a, aac and webm. Some kinds
of file need special care because libsndfile alone drops or invents samples: flac of unknown length, truncated or
chained ogg (RFC 3533), truncated NIST, and mp3 without a Xing header, whose length libsndfile only estimates. Its other
formats store no length, so a truncated file could not be detected: they are refused.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import soundfile

from echotts.audio.headers import File, MpegFrame, ogg_pages

BLOCK_FRAMES = 1 << 16
UNKNOWN_FRAMES = 1 << 36  # a flac of unknown length reports more
STREAMED_BYTES = 0x7FFFF000  # header length of a wav written to a pipe: 2 GiB (SoX) or 4 GiB (FFmpeg)
PCM_SLACK_S = 0.02
CODED_SLACK_S = 0.25  # encoder delay and padding, which decoders may trim or keep
# formats whose decoders write nothing to stderr
SILENT_DECODERS = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM", b".snd", b"caff")
MOST_LINKS = 1000
OPUS_HZ = 48000  # unit of the positions in Opus pages, whatever the sample rate
KINDS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3", "NIST")  # libsndfile's names
ACCEPTED = "give wav, flac, ogg, opus, mp3 or m4a"
NIST_HEADER_BYTES = 1024

Source = str | File  # a path, or an open seekable file
Block = np.ndarray  # (frames, channels) float32

_STDERR_LOCK = threading.Lock()


@dataclass(frozen=True)
class Sound:
    """An open recording. `frames` is the length given by its header, None if unknown.

    `blocks` decodes from the start at each call. It raises ValueError if the data cannot be decoded further.
    """

    rate: int
    channels: int
    frames: int | None
    slack_s: float
    blocks: Callable[[], Iterator[Block]]


def open_sound(source: Source, name: str) -> Sound:
    """Opens the recording in a regular file or an open seekable file. ValueError messages begin with `name`."""
    if isinstance(source, str):
        with open(source, "rb") as file:
            return _open(file, source, name)
    source.seek(0)
    whole = _Bytes(source.read())
    return _open(whole, whole, name)


def _open(file: File, source: Source, name: str) -> Sound:
    file.seek(0)
    head = file.read(16)
    if head[4:8] == b"ftyp" or head.startswith(b"\x1a\x45\xdf\xa3") or re.match(rb"\xff[\xf0\xf1\xf8\xf9]", head):
        return _by_pyav(source, name)
    if head.startswith(b"OggS"):
        return _ogg(file, name)
    if head.startswith(b"NIST"):
        counted = re.search(rb"\nsample_count -i (\d{1,15})\s", head + file.read(NIST_HEADER_BYTES))
        sound = _by_libsndfile(source, name)
        return replace(sound, frames=int(counted[1])) if counted else sound
    mpeg = MpegFrame.find(file)
    if mpeg is None:
        return _by_libsndfile(source, name, loud=not head.startswith(SILENT_DECODERS))
    if not mpeg.tagged:
        return _by_libsndfile(_Bytes(mpeg.endless(file)), name, loud=True, counted=False)
    if mpeg.is_followed(file):
        raise ValueError(f"{name}: has more audio than its mp3 header says: re-encode concatenated mp3 files")
    return _by_libsndfile(source, name, loud=True)


class _Bytes(BytesIO):
    """A BytesIO that ignores seeks before the start, which libsndfile does for damaged headers."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


class _Stream(soundfile.SoundFile):
    """Reads sequentially: soundfile otherwise seeks after every read, which fails if the length is unknown."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _stream(source: Source, name: str, loud: bool) -> Iterator[_Stream]:
    """A path is opened here: libsndfile takes no name that is not UTF-8, but an open file by its descriptor."""
    with open(source, "rb") if isinstance(source, str) else nullcontext(source) as file:
        file.seek(0)
        try:
            with _quiet(loud):
                stream = _Stream(file.fileno() if isinstance(source, str) else file, closefd=False)
        except (soundfile.SoundFileError, TypeError) as error:
            raise ValueError(f"{name}: cannot be read as a recording ({_reason(error)}): {ACCEPTED}") from error
        with stream:
            yield stream


def _by_libsndfile(source: Source, name: str, *, loud: bool = False, counted: bool = True) -> Sound:
    """Opens with libsndfile. `counted`: its frame count is from a header; `loud`: the decoder may write to stderr."""
    with _stream(source, name, loud) as stream:
        rate, channels, kind, frames = stream.samplerate, stream.channels, stream.format, stream.frames
        share = _share_of_claimed(stream.extra_info)
    if kind not in KINDS:
        raise ValueError(f"{name}: cannot be read as a recording (of the kind {kind}): {ACCEPTED}")

    def blocks() -> Iterator[Block]:
        with _stream(source, name, loud) as stream:
            while len(block := _read(stream, name, loud)):
                yield block

    known = counted and frames < UNKNOWN_FRAMES
    slack_s = CODED_SLACK_S if kind == "MP3" else PCM_SLACK_S
    return Sound(rate, channels, round(frames * share) if known else None, slack_s, blocks)


def _read(stream: _Stream, name: str, loud: bool) -> Block:
    try:
        with _quiet(loud):
            return stream.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise ValueError(f"{name}: decoding fails part-way ({_reason(error)})") from error


def _share_of_claimed(log: str) -> float:
    """Ratio of the length claimed by the header to the actual one: libsndfile shortens the length and only logs it.

    Its log lines: "data : 64000 (should be 29956)" (wav), "SSND : ..." (aiff), "Data Size : ..." (au), "riff" (w64,
    rf64).
    """
    line = r"(?m)^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)"
    for claimed, there in re.findall(line, log):
        if int(there) < int(claimed) < STREAMED_BYTES:
            return int(claimed) / max(int(there), 1)
    return 1.0


def _ogg(file: File, name: str) -> Sound:
    """Opens an Ogg file, which may be a chain of streams: libsndfile stops after the first.

    Ogg headers give no length: the last page's frame number counts from the start of its stream.
    """
    file.seek(0)
    data = file.read()
    chain: list[tuple[int, list[int]]] = []  # the start of each stream, and the positions of its first and last page
    last = None
    for page in ogg_pages(data):
        if not chain or page.begins_after(last):
            chain.append((page.start, []))
        if 0 < page.position < 1 << 62:
            positions = chain[-1][1]
            positions[:] = [*positions[:1], page.position] if positions else [page.position, page.position]
        last = page
    if last is None or not last.ends or last.end > len(data):
        raise ValueError(f"{name}: breaks off: the end of its Ogg stream is missing")
    if len(chain) > MOST_LINKS:
        raise ValueError(f"{name}: a chain of {len(chain)} Ogg streams, at most {MOST_LINKS} are read")
    links = []
    for (start, positions), end in zip(chain, [*(start for start, _ in chain[1:]), len(data)], strict=True):
        link = _by_libsndfile(_Bytes(data[start:end]), name, counted=False)
        hz = OPUS_HZ if b"OpusHead" in data[start : start + 64] else link.rate
        links.append((link, (positions[1] - positions[0]) / hz if positions else 0.0))
    if len({(link.rate, link.channels) for link, _ in links}) > 1:
        raise ValueError(f"{name}: a chain of Ogg streams of different rates or channels: encode it again as one")

    def blocks() -> Iterator[Block]:
        for link, least_s in links:
            count = 0
            for block in link.blocks():
                count += len(block)
                yield block
            if count < (least_s - CODED_SLACK_S) * link.rate:
                raise ValueError(
                    f"{name}: {count / link.rate:.2f} s can be decoded, by its pages {least_s:.2f} s or more"
                )

    first = links[0][0]
    return Sound(first.rate, first.channels, None, CODED_SLACK_S, blocks)


def _by_pyav(source: Source, name: str) -> Sound:
    """Opens m4a, aac and webm with FFmpeg, which reads the open file and cannot open any other."""
    try:
        import av
        from av.error import FFmpegError
    except ModuleNotFoundError as error:
        raise ValueError(f"{name}: m4a, aac and webm need PyAV: pip install 'echotts[m4a]', or give wav") from error
    failures = (FFmpegError, ValueError, IndexError, EOFError)

    @contextmanager
    def opened() -> Iterator[tuple[Any, Any]]:
        with open(source, "rb") if isinstance(source, str) else nullcontext(source) as file:
            file.seek(0)
            with av.open(file, metadata_errors="ignore") as container:
                if not container.streams.audio or container.streams.audio[0].codec_context is None:
                    raise ValueError("no audio that FFmpeg can decode")
                yield container, container.streams.audio[0]

    try:
        with opened() as (container, stream):
            rate, channels, layout = stream.rate, stream.channels, stream.layout
            length_s = float(stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6)
            counted = length_s > 0 and container.format.name != "aac"  # raw aac has no header: only an estimate
    except failures as error:
        raise ValueError(f"{name}: cannot be read as a recording ({_reason(error)})") from error

    def blocks() -> Iterator[Block]:
        try:
            with opened() as (container, stream):
                planes = av.AudioResampler(format="fltp", layout=layout, rate=rate)
                for frame in container.decode(stream):
                    yield from (piece.to_ndarray().T for piece in planes.resample(frame))
        except failures as error:
            raise ValueError(f"{name}: decoding fails part-way ({_reason(error)})") from error

    return Sound(rate, channels, round(length_s * rate) if counted else None, CODED_SLACK_S, blocks)


@contextmanager
def _quiet(loud: bool) -> Iterator[None]:
    """Suppresses what libsndfile's MPEG decoder writes to stderr; errors are raised anyway."""
    if not loud:
        yield
        return
    with _STDERR_LOCK:
        error_output = os.dup(2)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(error_output, 2)
            os.close(error_output)


def _reason(error: Exception) -> str:
    """The library's message without path and full stop."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()).removeprefix("Error : ").rstrip(".")
