"""Writes wav, flac, ogg (Vorbis) and mp3 files; equal samples give equal bytes."""

import io
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from echotts.audio.levels import OUTPUT_LOUDNESS_LUFS, Samples, normalise_output
from echotts.files import write_whole
from echotts.version import __version__

BLOCK_FRAMES = 1 << 16  # libsndfile's Vorbis encoder overruns its stack on very long single writes
MP3_RATE_KBPS = 320

FORMATS: dict[str, dict[str, Any]] = {
    ".wav": {"format": "WAV", "subtype": "PCM_16"},
    ".flac": {"format": "FLAC", "subtype": "PCM_16"},
    ".ogg": {"format": "OGG", "subtype": "VORBIS"},
    ".mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT"},
}
_MP3_RATES = (  # minimum sample rate -> bit rates in kbit/s (MPEG 1, 2 and 2.5, layer III)
    (32_000, (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)),
    (16_000, (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)),
    (0, (8, 16, 24, 32, 40, 48, 56, 64)),
)

_MODEL_CHARACTERS = 100  # of a model's name in a tag

logger = logging.getLogger(__name__)


def check_suffix(path: str | Path) -> Path:
    """The path, if its suffix names a writable format; otherwise a ValueError that lists the formats."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}: write one of {', '.join(FORMATS)}")
    return path


def check_mp3_rate(kbps: int) -> int:
    """The bit rate, if mp3 has it, else a ValueError. The maximum is 160 kbit/s below 32 kHz, 64 below 16 kHz."""
    known = sorted({rate for _, rates in _MP3_RATES for rate in rates})
    if kbps not in known:
        raise ValueError(f"mp3_rate {kbps} kbit/s: choose one of {', '.join(map(str, known))}")
    return kbps


def synthetic_tags(model: str) -> dict[str, str]:
    """The tags of a file with synthetic speech, by libsndfile's names: what made it, and "synthetic: yes".

    libsndfile stores them as LIST/INFO (ISFT, ICMT) in wav, as Vorbis comments in flac and ogg; in mp3 as ID3, which
    has no field for the software, so the comment names it too. ASCII, because ID3's text is not declared as UTF-8.
    """
    made_by = f"echotts {__version__}"
    plain = re.sub(r"[^ -~]", "?", model)[:_MODEL_CHARACTERS]
    return {"software": made_by, "comment": f"synthetic: yes; made by {made_by}; model: {plain}"}


def write_audio(
    path: str | Path,
    samples: Samples,
    rate: int,
    strategy: str = "peak",
    *,
    loudness_lufs: float = OUTPUT_LOUDNESS_LUFS,
    mp3_rate: int = MP3_RATE_KBPS,
    model: str | None = None,
) -> None:
    """Writes mono samples as .wav, .flac (16 bit), .ogg (Vorbis) or .mp3; equal samples give equal bytes.

    `mp3_rate` is the constant bit rate of an .mp3 in kbit/s (see `check_mp3_rate`). Missing folders are created; the
    file appears only once it is complete. `model` names the model that synthesised the samples, and marks the file as
    synthetic (see `synthetic_tags`); None for other audio. Raises ValueError for an unknown suffix or bit rate, no
    samples or non-finite samples, OSError if the file cannot be written.
    """
    path = check_suffix(path)
    if not len(samples):
        raise ValueError(f"{path}: no samples to write")
    bad = int(np.count_nonzero(~np.isfinite(samples)))
    if bad:
        raise ValueError(f"{path}: {bad} of {len(samples)} samples are not finite (NaN or infinite): nothing written")
    finished = normalise_output(samples, rate, strategy, loudness_lufs=loudness_lufs)
    if np.abs(finished).max() > 1.0:
        logger.warning("%s: clipped at 1, the peak is %.2f", path, np.abs(finished).max())
    write_whole(path, _encode(path, np.clip(finished, -1.0, 1.0), rate, mp3_rate, model))


def _encode(path: Path, samples: Samples, rate: int, mp3_rate: int, model: str | None) -> bytes:
    options = FORMATS[path.suffix.lower()]
    level = mp3_level(mp3_rate, rate) if options["format"] == "MP3" else None
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", samplerate=rate, channels=1, compression_level=level, **options) as file:
            for name, text in ({} if model is None else synthetic_tags(model)).items():
                setattr(file, name, text)
            for start in range(0, len(samples), BLOCK_FRAMES):
                file.write(samples[start : start + BLOCK_FRAMES])
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path}: {options['format']} cannot hold {rate} Hz mono ({str(error).strip()})") from error
    if options["format"] == "OGG":
        fix_ogg_serial(buffer)
    return buffer.getvalue()


def mp3_level(mp3_rate: int, rate: int) -> float:
    """libsndfile's compression level for a bit rate: 0 is the highest that the sample rate allows, 1 the lowest."""
    check_mp3_rate(mp3_rate)
    allowed = next(rates for from_hz, rates in _MP3_RATES if rate >= from_hz)
    chosen = max((one for one in allowed if one <= mp3_rate), default=allowed[0])
    return min((allowed[-1] - chosen) / (allowed[-1] - allowed[0]), 0.999)


def fix_ogg_serial(file: io.BytesIO | io.BufferedRandom) -> None:
    """Sets the serial number of an Ogg stream to 0: libsndfile takes it from the clock, so equal audio would differ.

    Page layout (RFC 3533): serial at byte 14, checksum at 22, segment count at 26, then the segment lengths.
    """
    start = file.seek(0)
    while header := file.read(27):
        lengths = file.read(header[26])
        page = bytearray(header + lengths + file.read(sum(lengths)))
        page[14:18] = bytes(4)
        page[22:26] = bytes(4)
        page[22:26] = _ogg_checksum(page).to_bytes(4, "little")
        file.seek(start)
        file.write(page)
        start = file.seek(start + len(page))


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
