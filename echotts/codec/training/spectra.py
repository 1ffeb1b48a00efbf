"""Spectra for codec training and evaluation: torch.stft's framing and librosa's mel filters.

The Fourier transform is a matrix product: on a CPU it is faster here than an FFT with its gradient, and the result is
the same on every platform.
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_LINEAR_MEL, _LOG_HZ, _LOG_STEP = 3 / 200, 1000.0, np.log(6.4) / 27  # Slaney's scale: linear to 1 kHz, then logarithmic


@lru_cache
def fourier(window: int) -> np.ndarray:
    """(window, 2 * bins): Hann-windowed cosine and negative sine columns, the real and imaginary parts of an rFFT."""
    n = np.arange(window)
    angle = 2 * np.pi * np.outer(n, np.arange(window // 2 + 1)) / window
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / window)
    return (np.concatenate([np.cos(angle), -np.sin(angle)], 1) * hann[:, None]).astype(np.float32)


@lru_cache
def mel_filters(window: int, bands: int, sample_rate: int) -> np.ndarray:
    """(bins, bands): triangular filters on Slaney's mel scale, each of unit area in Hz (librosa's default).

    A band that falls between two bins is empty, as in librosa.
    """
    edges = _hz(np.linspace(0, _mel(sample_rate / 2), bands + 2))
    hz = np.linspace(0, sample_rate / 2, window // 2 + 1)
    up = (hz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - hz[:, None]) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(up, down))
    return (filters * 2 / (edges[2:] - edges[:-2])).astype(np.float32)


def frames(audio: Float[Array, "b n"], window: int) -> Float[Array, "b f w"]:
    """Overlapping frames with hop window / 4; the signal is padded by reflection with half a window on both sides.

    There are n // hop + 1 frames, as for torch.stft with center=True. n must exceed window / 2.
    """
    hop = window // 4
    padded = jnp.pad(audio, ((0, 0), (window // 2, window // 2)), mode="reflect")
    blocks = padded[:, : padded.shape[1] // hop * hop].reshape(audio.shape[0], -1, hop)
    return jnp.concatenate([blocks[:, i : blocks.shape[1] - 3 + i] for i in range(4)], axis=-1)


def complex_spectrum(audio: Float[Array, "b n"], window: int) -> tuple[Float[Array, "b f k"], Float[Array, "b f k"]]:
    """Real and imaginary parts of the STFT: periodic Hann window, hop window / 4, unnormalised."""
    real, imaginary = jnp.split(frames(audio, window) @ fourier(window), 2, axis=-1)
    return real, imaginary


def magnitudes(audio: Float[Array, "b n"], window: int) -> Float[Array, "b f k"]:
    """Absolute values of `complex_spectrum`, with a finite gradient at zero."""
    real, imaginary = complex_spectrum(audio, window)
    return jnp.sqrt(real**2 + imaginary**2 + 1e-12)


def _mel(hz: float) -> float:
    return hz * _LINEAR_MEL if hz < _LOG_HZ else _LOG_HZ * _LINEAR_MEL + np.log(hz / _LOG_HZ) / _LOG_STEP


def _hz(mel: np.ndarray) -> np.ndarray:
    knee = _LOG_HZ * _LINEAR_MEL
    return np.where(mel < knee, mel / _LINEAR_MEL, _LOG_HZ * np.exp(_LOG_STEP * (np.maximum(mel, knee) - knee)))
