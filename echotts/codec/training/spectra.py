"""Spectra for codec training and evaluation, framed as by torch.stft.

The Fourier transform is a matrix product: on a CPU it is faster here than an FFT with its gradient, and the result is
the same on every platform.
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@lru_cache
def fourier(window: int) -> np.ndarray:
    """(window, 2 * bins): Hann-windowed cosine and negative sine columns, the real and imaginary parts of an rFFT."""
    n = np.arange(window)
    angle = 2 * np.pi * np.outer(n, np.arange(window // 2 + 1)) / window
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / window)
    return (np.concatenate([np.cos(angle), -np.sin(angle)], 1) * hann[:, None]).astype(np.float32)


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
