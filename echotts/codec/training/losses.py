"""The terms of a codec's loss. Each is a mean over the batch, so its value does not depend on how rows are sharded.

Multi-scale mel, feature matching and least-squares GAN losses as in the Descript audio codec (arXiv 2306.06546), the
STFT terms of Parallel WaveGAN (arXiv 1910.11480), and the posterior's KL divergence as in DAC-VAE (no factor 1/2).
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from echotts.codec.training.spectra import magnitudes
from echotts.spectrogram import mel_filters

Maps = Sequence[Sequence[Array]]
"""Layer outputs of each discriminator; the last one is its score map."""


def mel_loss(
    output: Float[Array, "b n"],
    target: Float[Array, "b n"],
    sample_rate: int,
    scales: Sequence[tuple[int, int]],
    floor: float,
) -> Float[Array, ""]:
    """Mean L1 distance of log10 mel magnitudes clamped at `floor`, summed over scales (window in samples, bands)."""
    total = jnp.zeros(())
    for window, bands in scales:
        filters = mel_filters(window, bands, sample_rate)
        total += jnp.abs(_log_mel(output, window, filters, floor) - _log_mel(target, window, filters, floor)).mean()
    return total


def stft_loss(
    output: Float[Array, "b n"], target: Float[Array, "b n"], windows: Sequence[int], floor: float
) -> Float[Array, ""]:
    """Spectral convergence plus L1 distance of natural log magnitudes clamped at `floor`, averaged over windows."""
    total = jnp.zeros(())
    for window in windows:
        got, wanted = magnitudes(output, window), magnitudes(target, window)
        error = jnp.sqrt(jnp.sum((got - wanted) ** 2, (1, 2)) + 1e-12)
        size = jnp.sqrt(jnp.sum(wanted**2, (1, 2)))
        # a silent clip has nothing to converge to: bound the denominator instead of dividing by zero
        total += (error / jnp.maximum(size, window / 100)).mean()
        total += jnp.abs(jnp.log(jnp.maximum(got, floor)) - jnp.log(jnp.maximum(wanted, floor))).mean()
    return total / max(len(windows), 1)


def wave_loss(output: Float[Array, "b n"], target: Float[Array, "b n"]) -> Float[Array, ""]:
    """L1 distance of the waveforms."""
    return jnp.abs(output - target).mean()


def kl_loss(mean: Float[Array, "b t c"], std: Float[Array, "b t c"], free_bits: float = 0.0) -> Float[Array, ""]:
    """Mean over batch and time of mean^2 + var - log var - 1, summed over channels.

    A channel below `free_bits` (in the unit of that sum, nats times two) counts as `free_bits` and gets no gradient.
    """
    variance = std**2
    channels = jnp.mean(mean**2 + variance - jnp.log(variance) - 1, axis=(0, 1))
    return jnp.sum(jnp.maximum(channels, free_bits))


def discriminator_loss(real: Maps, fake: Maps) -> Float[Array, ""]:
    """Least squares GAN loss (arXiv 1611.04076), summed over discriminators: real towards 1, fake towards 0."""
    pairs = zip(real, fake, strict=True)
    return sum((jnp.mean((1 - yes[-1]) ** 2) + jnp.mean(no[-1] ** 2) for yes, no in pairs), jnp.zeros(()))


def adversarial_loss(fake: Maps) -> Float[Array, ""]:
    """Generator loss: the discriminators' scores of its output towards 1, summed over discriminators."""
    return sum((jnp.mean((1 - maps[-1]) ** 2) for maps in fake), jnp.zeros(()))


def feature_loss(real: Maps, fake: Maps) -> Float[Array, ""]:
    """L1 distance of the inner layers' outputs, summed over layers and discriminators; score maps do not count."""
    return sum(
        (
            jnp.mean(jnp.abs(yes - no))
            for real_maps, fake_maps in zip(real, fake, strict=True)
            for yes, no in zip(real_maps[:-1], fake_maps[:-1], strict=True)
        ),
        jnp.zeros(()),
    )


def _log_mel(audio: Array, window: int, filters: np.ndarray, floor: float) -> Array:
    return jnp.log10(jnp.maximum(magnitudes(audio, window) @ filters, floor))
