"""Mel filters, and pictures of spectrograms. NumPy only."""

import math
import struct
import zlib
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8

PICTURE_WIDTH, BANDS = 512, 96  # pixels
WINDOW = 1024
LOWEST_HZ, FLOOR_DB = 40.0, -80.0
_LINEAR_MEL, _LOG_HZ, _LOG_STEP = 3 / 200, 1000.0, np.log(6.4) / 27  # Slaney's scale: linear to 1 kHz, then logarithmic


@lru_cache
def mel_filters(window: int, bands: int, sample_rate: int) -> np.ndarray:
    """(bins, bands): triangular filters on Slaney's mel scale, each of unit area in Hz (librosa's default).

    Bands between two bins are empty, as in librosa.
    """
    edges = _hz(np.linspace(0, _mel(sample_rate / 2), bands + 2))
    hz = np.linspace(0, sample_rate / 2, window // 2 + 1)
    up = (hz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - hz[:, None]) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(up, down))
    return (filters * 2 / (edges[2:] - edges[:-2])).astype(np.float32)


def draw_spectrogram(samples: Float[np.ndarray, " _n"], rate: int) -> bytes:
    """A PNG: time to the right, 96 mel bands upwards, louder is brighter, over 80 dB."""
    sound = np.nan_to_num(np.pad(samples, WINDOW // 2))
    starts = np.linspace(0, len(sound) - WINDOW, PICTURE_WIDTH).astype(int)
    frames = sound[starts[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    mel = power @ picture_filters(rate).T
    decibel = 10 * np.log10(np.maximum(mel / max(mel.max(), 1e-12), 1e-12))
    return png(colours(np.clip(1 - decibel / FLOOR_DB, 0, 1).T[::-1]))


def picture_filters(rate: int) -> Float[np.ndarray, "bands bins"]:
    """(bands, bins): triangles equally spaced on the mel scale 2595 log10(1 + f / 700)."""
    edges_mel = np.linspace(_htk_mel(LOWEST_HZ), _htk_mel(rate / 2), BANDS + 2)
    edges_hz = 700 * (10 ** (edges_mel / 2595) - 1)
    bins_hz = np.fft.rfftfreq(WINDOW, 1 / rate)
    low, middle, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    triangles = np.clip(np.minimum((bins_hz - low) / (middle - low), (high - bins_hz) / (high - middle)), 0, None)
    # the lowest bands are narrower than a bin: use the nearest bin
    empty = triangles.sum(axis=1) == 0
    triangles[empty, np.abs(bins_hz - middle[empty]).argmin(axis=1)] = 1
    return triangles


def _htk_mel(frequency_hz: float) -> float:
    return 2595 * math.log10(1 + frequency_hz / 700)


def colours(share: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """(height, width) in 0 to 1 as (height, width, 3) bytes: dark blue, violet, orange, pale yellow."""
    stops = np.array([[6, 8, 30], [70, 20, 110], [185, 50, 90], [250, 140, 30], [252, 250, 190]], float)
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(share, places, stops[:, channel]) for channel in range(3)], axis=-1).astype(np.uint8)


def png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """(height, width, 3) bytes as a PNG file (RFC 2083: each row starts with its filter type, 0 for none)."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _mel(hz: float) -> float:
    return hz * _LINEAR_MEL if hz < _LOG_HZ else _LOG_HZ * _LINEAR_MEL + np.log(hz / _LOG_HZ) / _LOG_STEP


def _hz(mel: np.ndarray) -> np.ndarray:
    knee = _LOG_HZ * _LINEAR_MEL
    return np.where(mel < knee, mel / _LINEAR_MEL, _LOG_HZ * np.exp(_LOG_STEP * (np.maximum(mel, knee) - knee)))
