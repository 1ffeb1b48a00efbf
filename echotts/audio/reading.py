"""Reads recordings of any format as mono float32. Limits are checked before the work they bound."""

import logging
import stat
from io import BufferedReader, BytesIO
from pathlib import Path

import numpy as np

from echotts.audio.formats import Sound, open_sound
from echotts.audio.levels import Samples, resample

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".webm"),
    *(".aif", ".aiff", ".au", ".caf", ".w64", ".sph"),
)
LEAST_RATE_HZ, MOST_RATE_HZ = 4_000, 384_000
MOST_CHANNELS = 32
LONGEST_S = 4 * 3600.0
LOUDEST = 1e6  # times full scale; integers stored as floats are below
CANCELLED_SHARE = 0.2  # of the power of the mean of uncorrelated channels: below it, channels cancel

logger = logging.getLogger(__name__)


class TooLong(ValueError):
    """The recording is longer than allowed."""


def read_audio(
    source: str | Path | BytesIO | BufferedReader,
    sample_rate: int,
    *,
    start_s: float = 0.0,
    limit_s: float | None = None,
    max_s: float = LONGEST_S,
    name: str = "",
) -> Samples:
    """Reads a recording as mono float32 at `sample_rate`: wav, flac, ogg, opus, mp3, m4a; 4 to 384 kHz, 32 channels.

    Channels are averaged; if they cancel, the loudest one is used and a warning logged. `limit_s` limits the seconds
    read, from `start_s` on (what precedes is decoded and dropped); without it, a recording longer than `max_s` raises
    TooLong, before decoding if its header gives the length. `name` replaces the path in messages when `source` is an
    open file.

    Memory: 8 bytes per frame at the file's rate and 4 per sample of the result. Raises FileNotFoundError, or ValueError
    if the recording cannot be decoded, is shorter than its header says, is empty or has non-finite values, or if
    `source` is a folder, pipe, socket or device.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "recording")
    sound = open_recording(source, None if limit_s is not None else max_s, name)
    most = round((limit_s if limit_s is not None else max_s) * sound.rate)
    skip = round(start_s * sound.rate)
    mono, powers = _mono(sound, name, most, cut=limit_s is not None, skip=skip)
    if _cancel(mono, powers):
        channel = int(np.argmax(powers))
        logger.warning("%s: channels cancel each other, using only channel %d", name, channel + 1)
        mono, _ = _mono(sound, name, most, cut=limit_s is not None, skip=skip, channel=channel)
    return resample(mono, sound.rate, sample_rate)


def open_recording(source: str | Path | BytesIO | BufferedReader, max_s: float | None = None, name: str = "") -> Sound:
    """Opens a recording for decoding block by block, and checks its rate, number of channels and length.

    `max_s` None allows any length. Errors as in `read_audio`; the caller checks the samples themselves (truncation with
    `check_whole`, and non-finite values).
    """
    name = name or (str(source) if isinstance(source, str | Path) else "recording")
    if isinstance(source, str | Path):
        _check_is_file(Path(source), name)
        source = str(source)
    sound = open_sound(source, name)
    _check_limits(sound, name, max_s)
    return sound


def _check_is_file(path: Path, name: str) -> None:
    """Rejects pipes and devices, whose opening could block forever."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{name}: no such recording") from error
    except (OSError, ValueError) as error:  # a name with NUL, or too long
        raise ValueError(f"{name}: cannot be read as a recording ({error})") from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"{name}: is a folder, not a recording")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name}: is a pipe, socket or device, not a recording: give a regular file")


def _check_limits(sound: Sound, name: str, max_s: float | None) -> None:
    if not LEAST_RATE_HZ <= sound.rate <= MOST_RATE_HZ:
        raise ValueError(f"{name}: sample rate {sound.rate} Hz is outside of {LEAST_RATE_HZ} to {MOST_RATE_HZ}")
    if not 1 <= sound.channels <= MOST_CHANNELS:
        raise ValueError(f"{name}: {sound.channels} channels, at most {MOST_CHANNELS} are supported")
    if max_s is not None and sound.frames is not None and sound.frames > max_s * sound.rate:
        raise TooLong(f"{name}: {sound.frames / sound.rate:.2f} s by its header, at most {max_s:g} s are allowed")


def _mono(
    sound: Sound, name: str, most: int, *, cut: bool, skip: int = 0, channel: int | None = None
) -> tuple[Samples, np.ndarray]:
    """The mean of the channels, or one of them, and each channel's power, after the first `skip` frames.

    Frames beyond `most` are cut, or raise TooLong.
    """
    pieces: list[np.ndarray] = []
    powers = np.zeros(sound.channels)
    count = bad = skipped = 0
    for block in sound.blocks():
        dropped = min(skip - skipped, len(block))
        skipped += dropped
        block = block[dropped:]
        block = block[: most - count] if cut else block
        pieces.append(_downmixed(block, channel))
        bad += count_unusable(block)
        if sound.channels > 1:
            powers += np.einsum("nc,nc->c", block, block)
        count += len(block)
        if cut and count >= most:
            break
        if count > most:
            raise TooLong(f"{name}: longer than the {most / sound.rate:g} s allowed")
    else:
        check_whole(sound, name, skipped + count)
    if not count:
        raise ValueError(f"{name}: the recording is empty (0 samples)")
    if bad:
        raise ValueError(f"{name}: {bad} of {count} samples are not finite or above {LOUDEST:g} times full scale")
    return np.concatenate(pieces), powers


def _downmixed(block: np.ndarray, channel: int | None) -> Samples:
    if channel is not None or block.shape[1] == 1:
        return block[:, channel or 0].copy()
    # Sum in double precision, so that huge finite values do not overflow to infinity.
    with np.errstate(invalid="ignore", over="ignore"):
        return block.mean(axis=1, dtype=np.float64).astype(np.float32)


def count_unusable(block: np.ndarray) -> int:
    """Frames of a block (n, channels) with a value that is not finite or above LOUDEST."""
    return int(np.count_nonzero(~(np.abs(block) <= LOUDEST).all(axis=1)))


def check_whole(sound: Sound, name: str, count: int) -> None:
    """Raises ValueError if fewer frames were decoded than the header promises."""
    if sound.frames is not None and count < sound.frames - sound.slack_s * sound.rate:
        there_s, promised_s = count / sound.rate, sound.frames / sound.rate
        raise ValueError(f"{name}: truncated: {there_s:.2f} s of the {promised_s:.2f} s that its header promises")


def _cancel(mono: Samples, powers: np.ndarray) -> bool:
    """Whether channels cancel: n uncorrelated channels leave 1/n of their power in the mean, opposite ones nothing."""
    power = float(np.dot(mono, mono))
    return power < float(CANCELLED_SHARE * powers.mean() / len(powers))
