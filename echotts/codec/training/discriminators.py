"""DAC's discriminators (arXiv 2306.06546): multi-period, and multi-band on complex STFTs of several resolutions.

Pure functions over lists of convolutions with weight norm folded in; arrays are channels last. Each discriminator
returns the outputs of all its layers; the last one is its score map.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from echotts.codec.layers import Params, add_bias
from echotts.codec.training.config import DiscriminatorConfig
from echotts.codec.training.spectra import complex_spectrum

_SLOPE = 0.1
_PERIOD_KERNEL, _PERIOD_STRIDES = 5, (3, 3, 3, 3, 1)
_BAND_LAYERS = (((3, 9), 1), ((3, 9), 2), ((3, 9), 2), ((3, 9), 2), ((3, 3), 1))  # kernel, stride in frequency


def init_discriminators(config: DiscriminatorConfig, key: PRNGKeyArray) -> Params:
    """Random folded parameters, uniform within 1 / sqrt(fan in), PyTorch's default for convolutions."""
    convolutions = 6 * len(config.periods) + (5 * len(config.bands[1:]) + 1) * len(config.windows)
    keys = iter(jax.random.split(key, 2 * convolutions))

    def conv(shape: tuple[int, ...]) -> Params:
        bound = 1 / math.sqrt(math.prod(shape[:-1]))
        kernel = jax.random.uniform(next(keys), shape, minval=-bound, maxval=bound)
        return {"kernel": kernel, "bias": jax.random.uniform(next(keys), shape[-1:], minval=-bound, maxval=bound)}

    def period() -> Params:
        widths = (1, *config.period_channels)
        layers = [conv((_PERIOD_KERNEL, before, after)) for before, after in itertools.pairwise(widths)]
        return {"layers": layers, "head": conv((3, widths[-1], 1))}

    def spectral() -> Params:
        width = config.band_channels
        bands = [
            [conv((*kernel, 2 if n == 0 else width, width)) for n, (kernel, _) in enumerate(_BAND_LAYERS)]
            for _ in config.bands[1:]
        ]
        return {"bands": bands, "head": conv((3, 3, width, 1))}

    return {"periods": [period() for _ in config.periods], "spectra": [spectral() for _ in config.windows]}


def discriminate(params: Params, config: DiscriminatorConfig, audio: Float[Array, "b n"]) -> list[list[Array]]:
    """Layer outputs of every discriminator: first the multi-period ones, then the STFT ones."""
    audio = prepare(audio)
    maps = [
        period_maps(weights, audio, period) for weights, period in zip(params["periods"], config.periods, strict=True)
    ]
    return maps + [
        spectral_maps(weights, audio, window, config.bands)
        for weights, window in zip(params["spectra"], config.windows, strict=True)
    ]


def prepare(audio: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Removes the DC offset and scales the peak to 0.8; silence stays silence."""
    audio = audio - audio.mean(axis=-1, keepdims=True)
    return 0.8 * audio / (jnp.abs(audio).max(axis=-1, keepdims=True) + 1e-9)


def period_maps(params: Params, audio: Float[Array, "b n"], period: int) -> list[Array]:
    """Layer outputs (batch * period, time, channels) of convolutions over every `period`-th sample.

    The end is padded by reflection to the next multiple of the period; as in DAC, a length that already is a multiple
    gets a whole period.
    """
    batch, samples = audio.shape
    audio = jnp.pad(audio, ((0, 0), (0, period - samples % period)), mode="reflect")
    x = audio.reshape(batch, -1, period).transpose(0, 2, 1).reshape(batch * period, -1, 1)  # columns become rows
    maps = []
    for layer, stride in zip(params["layers"], _PERIOD_STRIDES, strict=True):
        x = _leaky(_conv(x, layer, (stride,)))
        maps.append(x)
    return [*maps, _conv(x, params["head"], (1,))]


def spectral_maps(params: Params, audio: Float[Array, "b n"], window: int, edges: tuple[float, ...]) -> list[Array]:
    """Layer outputs (batch, frames, frequency, channels) band by band; then the score map over all bands.

    There are ceil(n / hop) frames: the signal is padded by reflection, and the two frames on each side that depend on
    the STFT's own padding are dropped (audiotools' match_stride).
    """
    hop = window // 4
    right = -audio.shape[1] % hop
    pad = (window - hop) // 2
    padded = jnp.pad(audio, ((0, 0), (pad, pad + right)), mode="reflect")
    spectrum = jnp.stack(complex_spectrum(padded, window), axis=-1)[:, 2:-2]
    bins = window // 2 + 1
    cuts = [int(edge * bins) for edge in edges]
    maps, ends = [], []
    for first, last, layers in zip(cuts, cuts[1:], params["bands"], strict=False):
        x = spectrum[:, :, first:last]
        for layer, (_, stride) in zip(layers, _BAND_LAYERS, strict=True):
            x = _leaky(_conv(x, layer, (1, stride)))
            maps.append(x)
        ends.append(x)
    return [*maps, _conv(jnp.concatenate(ends, axis=2), params["head"], (1, 1))]


def _conv(x: Array, params: Params, strides: tuple[int, ...]) -> Array:
    """Convolution in one or two dimensions, zero-padded by k // 2 on both sides."""
    kernel: Any = params["kernel"]
    padding = [(size // 2, size // 2) for size in kernel.shape[:-2]]
    layout = ("NHC", "HIO", "NHC") if len(strides) == 1 else ("NHWC", "HWIO", "NHWC")
    return add_bias(jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout), params["bias"])


def _leaky(x: Array) -> Array:
    return jnp.where(x > 0, x, _SLOPE * x)
