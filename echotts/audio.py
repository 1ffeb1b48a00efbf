"""Sound in and out of the system: read, resample, loudness, write. Mono float32, full scale is 1.

Facts about the loudness and output strategies come from ITU-R BS.1770 and from audiocraft's `audio_write`.
"""

import io
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from echotts.files import atomic_write

Samples = Float[np.ndarray, " _n"]  # mono; lengths are free, also within one call
OutputStrategy = Literal["peak", "rms", "clip", "loudness", "none"]

OUTPUT_STRATEGIES: tuple[str, ...] = get_args(OutputStrategy)
OUTPUT_LOUDNESS_LUFS = -14.0
HEADROOM_PEAK = 10.0 ** (-1.0 / 20.0)  # 1 dB below full scale
OUTPUT_RMS = 10.0 ** (-18.0 / 20.0)
SILENT_PEAK = 1e-4  # -80 dB: no strategy lifts what is quieter
SILENT_RMS = 2e-3  # below it a loudness figure means nothing
BLOCK_SAMPLES = 1 << 16  # libsndfile's Vorbis encoder overruns its stack on very long single writes

_FORMATS = {
    ".wav": {"format": "WAV", "subtype": "PCM_16"},
    ".flac": {"format": "FLAC", "subtype": "PCM_16"},
    ".ogg": {"format": "OGG", "subtype": "VORBIS"},
    # Constant bit rate at level 0 is the highest MPEG allows: 320 kbit/s from 32 kHz up, 160 below.
    ".mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III", "compression_level": 0.0, "bitrate_mode": "CONSTANT"},
}

_QUIET_LOCK = threading.Lock()

logger = logging.getLogger(__name__)


def duration_s(source: str | Path | io.BytesIO | io.BufferedReader, *, name: str = "") -> float:
    """Length of a recording in seconds, from its header. Errors as `read_audio`."""
    name = name or _name(source)
    with _open(source, name) as file:
        return file.frames / file.samplerate


def read_audio(
    source: str | Path | io.BytesIO | io.BufferedReader,
    sample_rate: int,
    *,
    start_s: float = 0.0,
    limit_s: float | None = None,
    name: str = "",
) -> Samples:
    """A recording (wav, flac, ogg, opus, mp3, aiff, ...; any rate, any channels) as mono float32 at `sample_rate`.

    Channels are averaged. With `limit_s` only so many seconds are read, from `start_s` on. `name` stands in for the
    path in messages when `source` is an open file. Raises FileNotFoundError, or ValueError when the recording cannot
    be decoded, is empty or holds values that are not finite.
    """
    name = name or _name(source)
    with _open(source, name) as file:
        rate = file.samplerate
        frames = -1 if limit_s is None else round(limit_s * rate)
        try:
            with _quiet(file.format == "MP3"):
                file.seek(min(round(start_s * rate), file.frames))
                channels = file.read(frames, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise ValueError(f"{name}: the sound breaks off and cannot be decoded ({_reason(error)})") from error
    if not len(channels):
        raise ValueError(f"{name}: the recording is empty (0 samples)")
    # The sum runs in double precision so that huge finite values do not overflow into infinite ones.
    mono = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1, dtype=np.float64).astype(np.float32)
    bad = int(np.count_nonzero(~np.isfinite(channels).all(axis=1)))
    if bad:
        raise ValueError(f"{name}: {bad} of {len(channels)} samples are not finite (NaN or infinite)")
    return resample(mono, rate, sample_rate)


def resample(samples: Samples, rate: int, new_rate: int) -> Samples:
    """Band-limited conversion from `rate` to `new_rate` (Hz); the same array when they are equal."""
    if rate == new_rate:
        return samples
    return soxr.resample(samples, rate, new_rate).astype(np.float32, copy=False)


def measure_loudness(samples: Samples, rate: int) -> float:
    """Integrated loudness in LUFS (BS.1770-4), -inf for silence; what is shorter than a block of 0.4 s is repeated."""
    import pyloudnorm  # here, not above: it loads scipy.signal, which most callers never need

    meter = pyloudnorm.Meter(rate)
    block = int(np.ceil(meter.block_size * rate))
    wave = samples.astype(np.float64)
    if 0 < len(wave) < block:
        wave = np.tile(wave, -(-block // len(wave)))
    if not len(wave) or not wave.any():
        return -np.inf
    return float(meter.integrated_loudness(wave))


def loudness_normalise(samples: Samples, rate: int, target: float = -16.0) -> Samples:
    """Scaled to `target` LUFS, then down again if the peak would pass 1. Silence comes back unchanged."""
    measured = measure_loudness(samples, rate)
    if not np.isfinite(measured):
        return samples
    return _scaled(samples, 10.0 ** ((target - measured) / 20.0))


def normalise_output(
    samples: Samples, rate: int, strategy: str = "peak", *, loudness_lufs: float = OUTPUT_LOUDNESS_LUFS
) -> Samples:
    """The level of a finished recording.

    peak: the largest sample at -1 dB. rms: RMS at -18 dB. clip: cut at -1 dB. loudness: `loudness_lufs` (BS.1770).
    none: untouched. rms and loudness lower the gain rather than cut peaks above 1. What is silent stays silent.
    """
    if strategy not in OUTPUT_STRATEGIES:
        raise ValueError(f"unknown output normalisation {strategy!r}: choose one of {', '.join(OUTPUT_STRATEGIES)}")
    if strategy == "none" or not len(samples):
        return samples
    if strategy == "clip":
        return np.clip(samples, -HEADROOM_PEAK, HEADROOM_PEAK)
    peak = float(np.abs(samples).max())
    if peak < SILENT_PEAK:
        return samples
    if strategy == "peak":
        return (samples * (HEADROOM_PEAK / peak)).astype(np.float32)
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    if strategy == "rms":
        return _scaled(samples, OUTPUT_RMS / rms)
    return loudness_normalise(samples, rate, loudness_lufs) if rms >= SILENT_RMS else samples


def trim_silence(samples: Samples, rate: int, *, threshold_db: float = -40.0, window_s: float = 0.01) -> Samples:
    """Without the start and the end where no window's RMS is within `threshold_db` of the loudest window's.

    What is silent throughout comes back empty.
    """
    window = max(1, round(window_s * rate))
    padded = np.pad(samples, (0, -len(samples) % window)).astype(np.float64)
    power = np.mean(np.square(padded).reshape(-1, window), axis=1)
    if not len(power) or power.max() < SILENT_PEAK**2:
        return samples[:0]
    loud = np.flatnonzero(power > power.max() * 10.0 ** (threshold_db / 10.0))
    return samples[loud[0] * window : (loud[-1] + 1) * window]


def check_output(path: str | Path) -> Path:
    """The path of a recording to be written, once its suffix is known and `check_place` agrees."""
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}: write one of {', '.join(_FORMATS)}")
    return check_place(path)


def check_place(path: Path) -> Path:
    """The path once its folder exists (made if missing) and takes files; before long work. OSError with one line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path}: the folder {path.parent} cannot be made ({error.strerror})") from error
    if path.is_dir():
        raise OSError(f"{path}: is a folder: name a file in it")
    if not os.access(path.parent, os.W_OK):
        raise OSError(f"{path}: the folder {path.parent} is not writable")
    return path


def write_whole(path: Path, data: bytes) -> None:
    """A file that appears whole or not at all. OSError names it and the reason."""
    check_place(path)
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        if error.strerror is None:  # says it already
            raise
        raise OSError(f"{path}: cannot be written ({error.strerror})") from error


def write_audio(
    path: str | Path,
    samples: Samples,
    rate: int,
    strategy: str = "peak",
    *,
    loudness_lufs: float = OUTPUT_LOUDNESS_LUFS,
) -> None:
    """Writes mono samples as .wav, .flac (16 bit), .ogg (Vorbis) or .mp3; the same samples give the same bytes.

    A missing folder is made; the file appears whole or not at all. Raises ValueError for an unknown suffix, for no
    samples or for samples that are not finite, OSError when the place is not writable.
    """
    path = check_output(path)
    if not len(samples):
        raise ValueError(f"{path}: there are no samples to write")
    bad = int(np.count_nonzero(~np.isfinite(samples)))
    if bad:
        raise ValueError(f"{path}: {bad} of {len(samples)} samples are not finite (NaN or infinite): nothing written")
    finished = normalise_output(samples, rate, strategy, loudness_lufs=loudness_lufs)
    if np.abs(finished).max() > 1.0:
        logger.warning("%s: the peak is %.2f and is cut at 1", path, np.abs(finished).max())
    write_whole(path, _encode(path, np.clip(finished, -1.0, 1.0), rate))


def _encode(path: Path, samples: Samples, rate: int) -> bytes:
    options = _FORMATS[path.suffix.lower()]
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", samplerate=rate, channels=1, **options) as file:
            for start in range(0, len(samples), BLOCK_SAMPLES):
                file.write(samples[start : start + BLOCK_SAMPLES])
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path}: {options['format']} cannot hold {rate} Hz mono ({_reason(error)})") from error
    return _with_fixed_serial(buffer.getvalue()) if options["format"] == "OGG" else buffer.getvalue()


def _with_fixed_serial(stream: bytes) -> bytes:
    """An Ogg stream with serial number 0: libsndfile draws it from the clock, so equal sound gave unequal files.

    Page layout (RFC 3533): serial at byte 14, checksum at 22, segment count at 26, then the segment lengths.
    """
    pages = bytearray(stream)
    start = 0
    while start < len(pages):
        segments = pages[start + 26]
        end = start + 27 + segments + sum(pages[start + 27 : start + 27 + segments])
        pages[start + 14 : start + 18] = bytes(4)
        pages[start + 22 : start + 26] = bytes(4)
        pages[start + 22 : start + 26] = _ogg_checksum(pages[start:end]).to_bytes(4, "little")
        start = end
    return bytes(pages)


def _ogg_checksum(page: bytes | bytearray) -> int:
    """CRC-32 with polynomial 0x04c11db7, not reflected, no inversion (RFC 3533)."""
    checksum = 0
    for byte in page:
        checksum = ((checksum << 8) & 0xFFFFFFFF) ^ _CRC_TABLE[(checksum >> 24) ^ byte]
    return checksum


def _crc_entry(byte: int) -> int:
    value = byte << 24
    for _ in range(8):
        value = ((value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value


_CRC_TABLE = [_crc_entry(byte) for byte in range(256)]


def _scaled(samples: Samples, gain: float) -> Samples:
    peak = float(np.abs(samples).max())
    return (samples * min(gain, 1.0 / peak)).astype(np.float32)


def _open(source: str | Path | io.BytesIO | io.BufferedReader, name: str) -> soundfile.SoundFile:
    if isinstance(source, str | Path):
        if not Path(source).exists():
            raise FileNotFoundError(f"{name}: no such recording")
        if Path(source).is_dir():
            raise ValueError(f"{name}: is a folder, not a recording")
        source = str(source)
    try:
        with _quiet(name.lower().endswith(".mp3")):
            return soundfile.SoundFile(source)
    except (soundfile.SoundFileError, TypeError) as error:
        raise ValueError(
            f"{name}: cannot be read as a recording ({_reason(error)}): give wav, flac, ogg, opus or mp3"
        ) from error


@contextmanager
def _quiet(mpeg: bool) -> Iterator[None]:
    """Hides what the MPEG decoder inside libsndfile writes to standard error; what it means is raised."""
    if not mpeg:
        yield
        return
    with _QUIET_LOCK:
        error_output = os.dup(2)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(error_output, 2)
            os.close(error_output)


def _name(source: str | Path | io.BytesIO | io.BufferedReader) -> str:
    return str(source) if isinstance(source, str | Path) else "recording"


def _reason(error: Exception) -> str:
    """libsndfile's own words without the path and the full stop."""
    text = getattr(error, "error_string", None) or str(error)
    return text.strip().rstrip(".")
