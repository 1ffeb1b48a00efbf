"""A recording that is made piece by piece, on disk: constant memory for any length; an interrupted one is continued.

Samples and latents of finished pieces are appended to two files in the folder `.NAME.speaking` beside the output, and
then a line with both lengths to `pieces.jsonl`, whose first line says what is being spoken. When all pieces are there,
the output is written at once, and the folder is removed. It takes 4 bytes per sample, 0.7 GB for an hour at 48 kHz.
"""

import fcntl
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from echotts import __version__
from echotts.audio import MP3_RATE_KBPS, OUTPUT_LOUDNESS_LUFS, Samples, normalise_output, output_gain
from echotts.codec.sound import LoudnessMeter, write_sound
from echotts.files import atomic_write, check_writable
from echotts.strict_json import load_rows
from echotts.synthesis.candidates import Choose
from echotts.synthesis.speech import Speech
from echotts.text.sentences import Piece

if TYPE_CHECKING:
    from echotts.synthesis.tts import EchoTTS

BLOCK_SAMPLES = 1 << 18  # read, measured and encoded at once
SAMPLES, LATENTS, PIECES = "samples.f32", "latents.f32", "pieces.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Level:
    """How a recording is written: see `audio.normalise_output` and `audio.write_audio`."""

    strategy: str = "peak"
    loudness_lufs: float = OUTPUT_LOUDNESS_LUFS
    mp3_rate: int = MP3_RATE_KBPS


def facts_of(tts: "EchoTTS", pieces: Sequence[Piece], voice: np.ndarray | None, **options: Any) -> dict[str, Any]:
    """All that the samples of the pieces of a text depend on. `options`: of `tts.pieces`."""
    heard = None if voice is None else hashlib.sha256(np.ascontiguousarray(voice).tobytes()).hexdigest()
    plain = {name: repr(value) for name, value in options.items()}
    return plain | {
        "text": [(piece.text, piece.ends) for piece in pieces],
        "voice": heard,
        "model": tts.fingerprint,
        "version": __version__,
    }


class Recording(Sequence[Speech]):
    """The finished pieces of a recording, of which more can be appended. Use it as a context."""

    def __init__(self, output: Path, facts: dict[str, Any], rate: int, channels: int) -> None:
        """Continues the recording of `output` if an interrupted one was made from the same `facts`, else begins it.

        Raises BlockingIOError if another process is making it, OSError if its folder cannot be written.
        """
        self._output, self._rate, self._channels = output, rate, channels
        self._folder = output.with_name(f".{output.name}.speaking")
        text = json.dumps(facts | {"rate": rate, "channels": channels}, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()
        self._ends: list[tuple[int, int]] = []  # samples and frames up to the end of each piece
        self._journal_bytes = 0  # of PIECES, without an incomplete last line
        self._lock: int | None = None

    def __enter__(self) -> "Recording":
        check_writable(self._output)
        if self._folder.is_dir():
            self._open()
            self._ends = self._finished()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> Speech: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Speech]: ...
    def __getitem__(self, number: int | slice) -> Speech | Sequence[Speech]:
        """The piece with this number, as it was appended."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        (samples, frames), (first, begun) = self._ends[number], self._ends[number - 1] if number else (0, 0)
        latents = self._read(LATENTS, begun * self._channels, (frames - begun) * self._channels)
        return Speech(self._read(SAMPLES, first, samples - first), self._rate, latents.reshape(-1, self._channels))

    @property
    def duration_s(self) -> float:
        return self._length / self._rate

    def append(self, speech: Speech) -> None:
        """Keeps a piece; after that it survives the end of the process."""
        if not np.isfinite(speech.samples).all():
            raise ValueError(f"{self._output}: piece {len(self) + 1} has samples that are not finite: nothing written")
        if not self._ends:
            self._open()
            self._journal_bytes = 0
            self._log({"key": self._key})
        samples, frames = self._ends[-1] if self._ends else (0, 0)
        self._write(SAMPLES, speech.samples.astype("<f4").tobytes(), 4 * samples)
        self._write(LATENTS, speech.latents.astype("<f4").tobytes(), 4 * frames * self._channels)
        self._ends.append((samples + len(speech.samples), frames + len(speech.latents)))
        self._log(dict(zip(("samples", "frames"), self._ends[-1], strict=True)))

    def finish(self, level: Level, model: str, pause_s: float = 0.0, latents: Path | None = None) -> None:
        """Writes the whole recording at its output level, followed by silence, and its latents as .npy.

        Then the folder is removed.
        """
        silence = np.zeros((1, round(pause_s * self._rate)), np.float32)
        blocks = itertools.chain(self._levelled(level), [silence])
        write_sound(self._output, blocks, self._rate, 1, self._length + silence.size, level.mp3_rate, model)
        if latents is not None:
            shape = (self._ends[-1][1], self._channels)
            with atomic_write(latents) as temporary, temporary.open("wb") as file:
                np.save(file, np.memmap(self._folder / LATENTS, "<f4", "r", shape=shape))
        shutil.rmtree(self._folder)

    @property
    def _length(self) -> int:
        return self._ends[-1][0] if self._ends else 0

    def _levelled(self, level: Level) -> Iterator[np.ndarray]:
        """Blocks (1, n) at the output level; the recording is read twice."""
        meter, peak, power = LoudnessMeter(self._rate, 1), 0.0, 0.0
        for block in self._blocks():
            if level.strategy == "loudness":
                meter.push(block[None])
            peak = max(peak, float(np.abs(block).max()))
            power += float(np.sum(np.square(block, dtype=np.float64)))
        rms = (power / max(1, self._length)) ** 0.5
        gain = np.float32(output_gain(level.strategy, peak, rms, meter.loudness, level.loudness_lufs))
        for block in self._blocks():
            yield (normalise_output(block, self._rate, "clip") if level.strategy == "clip" else block * gain)[None]

    def _blocks(self) -> Iterator[Samples]:
        for start in range(0, self._length, BLOCK_SAMPLES):
            yield self._read(SAMPLES, start, min(BLOCK_SAMPLES, self._length - start))

    def _open(self) -> None:
        if self._lock is not None:
            return
        self._folder.mkdir(exist_ok=True)
        self._lock = os.open(self._folder / PIECES, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{self._output}: another process is speaking to this file: choose another") from None

    def _finished(self) -> list[tuple[int, int]]:
        """The pieces of an interrupted recording of the same facts; none if it cannot be continued."""
        try:
            rows = load_rows(self._folder / PIECES)
            self._journal_bytes = (self._folder / PIECES).read_bytes().rfind(b"\n") + 1
            if not rows or rows[0] != {"key": self._key}:
                raise ValueError("it was made from another text, voice, model or other options")
            ends = [(int(row["samples"]), int(row["frames"])) for row in rows[1:]]
            whole = (self._size(SAMPLES) // 4, self._size(LATENTS) // (4 * self._channels)) if ends else (0, 0)
            if any(not 0 <= length <= limit for end in ends for length, limit in zip(end, whole, strict=True)):
                raise ValueError("its files do not belong together")
        except (ValueError, KeyError, TypeError, OSError) as error:
            logger.warning("%s: an interrupted recording is not continued: %s", self._output, error)
            return []
        logger.info("%s: continues an interrupted recording after piece %d", self._output, len(ends))
        return ends

    def _size(self, name: str) -> int:
        return (self._folder / name).stat().st_size

    def _read(self, name: str, first: int, count: int) -> Samples:
        return np.fromfile(self._folder / name, "<f4", count, offset=4 * first).astype(np.float32)

    def _log(self, row: dict[str, Any]) -> None:
        line = json.dumps(row).encode() + b"\n"
        self._write(PIECES, line, self._journal_bytes)
        self._journal_bytes += len(line)

    def _write(self, name: str, data: bytes, start: int) -> None:
        """Writes at a position, after which the file ends; what an interrupted process wrote there is replaced."""
        with (self._folder / name).open("ab") as file:
            file.truncate(start)
            file.write(data)


@dataclass(frozen=True)
class Recorded:
    """Seconds of speech in a file, and how many of them were synthesised by this call."""

    duration_s: float
    new_s: float


def record_text(
    tts: "EchoTTS",
    text: str | Sequence[Piece],
    voice: np.ndarray | None,
    output: Path,
    level: Level,
    *,
    latents: Path | None = None,
    pause_s: float = 0.0,
    on_piece: Callable[[int, int], None] = lambda done, total: None,
    choose: Choose | None = None,
    **options: Any,
) -> Recorded:
    """Speaks a text of any length to a file, piece by piece; an interrupted call is continued by the same call.

    `text` may be given as its pieces (`tts.split`), `voice` are the latents of a reference, `options` those of
    `tts.pieces`; `pause_s` of silence follow the speech; `on_piece` gets the number of finished pieces and of all.
    Errors of the text are raised before anything is written.
    """
    pieces = tts.split(text, options["duration"]) if isinstance(text, str) else text
    facts = facts_of(tts, pieces, voice, **options)
    with Recording(output, facts, tts.sample_rate, tts.config.latent_channels) as recording:
        before_s = recording.duration_s
        for speech in tts.pieces(pieces, voice, choose=choose, spoken=recording, **options):
            recording.append(speech)
            on_piece(len(recording), len(pieces))
        recording.finish(level, tts.name, pause_s, latents)
        return Recorded(recording.duration_s + pause_s, recording.duration_s - before_s)
