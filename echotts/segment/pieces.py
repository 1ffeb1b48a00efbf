"""Finds speech in a long recording with silero-vad, block by block, so that memory does not grow with its length.

The model and the code around it come with the faster-whisper wheel (silero-vad 6, MIT).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from echotts.audio import Samples, resample
from echotts.audio.reading import check_whole, count_unusable, open_recording

INSTALL_HINT = "pip install 'echotts[asr]'"
RATE_HZ = 16000  # silero-vad's sample rate
BLOCK_S = 300.0  # processed together
JOIN_S = 0.5  # speech is joined across pauses up to this
LEAD_S = 0.12  # kept before the speech, at most half the pause: silero-vad is late at both ends
CARRIED_S = 1.0  # overlap of blocks, so that speech starting at the end of one is not cut
SPEECH, PAUSE = 0.7, 0.65  # thresholds; lower ones end up to 0.4 s late before music or noise (benchmarks/)
LEAST_SPEECH_MS, LEAST_PAUSE_MS = 250, 200


@dataclass(frozen=True)
class Piece:
    """A stretch of speech. `samples` are mono at the recording's rate; times are in the recording."""

    start_s: float
    end_s: float
    samples: Samples
    rate: int


Span = tuple[float, float]  # seconds


def find_pieces(path: Path, longest_s: float) -> Iterator[Piece]:
    """Yields every stretch of speech in a recording, in order, none longer than `longest_s` plus LEAD_S.

    Raises ValueError or FileNotFoundError if the file cannot be read, ModuleNotFoundError without faster-whisper.
    """
    sound = open_recording(path)
    waiting, held, offset, count = [], 0, 0, 0
    for block in sound.blocks():
        if count_unusable(block):
            at_s = count / sound.rate
            raise ValueError(f"{path}: values that are not finite or far above full scale, at {at_s:.1f} s or later")
        mono = block.mean(axis=1, dtype=np.float64).astype(np.float32)
        waiting.append(mono)
        held, count = held + len(mono), count + len(mono)
        if held >= BLOCK_S * sound.rate:
            samples = np.concatenate(waiting)
            *whole, last = [*_pieces(samples, sound.rate, longest_s), None]
            keep = held - round(CARRIED_S * sound.rate)
            if whole:  # the last one may continue in the next block
                last = whole.pop()
                before_s = max(last.start_s - CARRIED_S, whole[-1].end_s if whole else 0.0)
                keep = min(keep, round(before_s * sound.rate))
            yield from (_moved(piece, offset / sound.rate) for piece in whole)
            waiting, held, offset = [samples[keep:]], held - keep, offset + keep
    check_whole(sound, str(path), count)
    if held:
        samples = np.concatenate(waiting)
        yield from (_moved(piece, offset / sound.rate) for piece in _pieces(samples, sound.rate, longest_s))


def _moved(piece: Piece, by_s: float) -> Piece:
    return replace(piece, start_s=piece.start_s + by_s, end_s=piece.end_s + by_s)


def _pieces(samples: Samples, rate: int, longest_s: float) -> Iterator[Piece]:
    """The pieces of one block."""
    spans = find_speech(resample(samples, rate, RATE_HZ), longest_s)
    groups = join(spans, longest_s)
    for number, (start_s, end_s) in enumerate(groups):
        before_s = groups[number - 1][1] if number else 0.0
        start_s -= min(LEAD_S, (start_s - before_s) / 2)
        yield Piece(start_s, end_s, samples[round(start_s * rate) : round(end_s * rate)], rate)


def find_speech(samples: Samples, longest_s: float) -> list[Span]:
    """(start, end) in seconds of speech found by silero-vad, at RATE_HZ; longer than `longest_s` is cut at a pause."""
    try:
        from faster_whisper.vad import VadOptions, get_speech_timestamps
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"silero-vad needs faster-whisper: {INSTALL_HINT}") from error
    options = VadOptions(
        threshold=SPEECH,
        neg_threshold=PAUSE,
        min_speech_duration_ms=LEAST_SPEECH_MS,
        min_silence_duration_ms=LEAST_PAUSE_MS,
        speech_pad_ms=0,
        max_speech_duration_s=longest_s,
    )
    return [(at["start"] / RATE_HZ, at["end"] / RATE_HZ) for at in get_speech_timestamps(samples, options)]


def join(spans: list[Span], longest_s: float) -> list[Span]:
    """Joins neighbouring spans with a pause of at most JOIN_S, as long as the result stays within `longest_s`."""
    joined: list[Span] = []
    for start_s, end_s in spans:
        if joined and start_s - joined[-1][1] <= JOIN_S and end_s - joined[-1][0] <= longest_s:
            joined[-1] = joined[-1][0], end_s
        else:
            joined.append((start_s, end_s))
    return joined
