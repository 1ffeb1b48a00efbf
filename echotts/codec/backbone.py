"""The network shared by DACVAE and DAC: an encoder, one of two bottlenecks, and a decoder.

DACVAE (facebookresearch/dacvae) has a Gaussian bottleneck: a latent is the posterior mean, or a sample of the
posterior. DAC (descriptinc/descript-audio-codec, arXiv 2306.06546) has a residual vector quantizer: a latent is the sum
of the quantized vectors (see quantizer.py). Everything else is identical. The functions are pure and take nested
dictionaries of float32 parameters with weight norm folded in. Sizes come from a CodecConfig read from the weights file.
DACVAE's watermark is in watermark.py.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from echotts.codec import layers
from echotts.codec.config import CodecConfig
from echotts.codec.layers import Params, snake


def encode_features(
    params: Params, config: CodecConfig, audio: Float[Array, "b n"], ops: Any = layers
) -> Float[Array, "b t d"]:
    """The encoder up to the bottleneck; n must be a multiple of the hop.

    `ops` provides conv, downsample, upsample and residual_units: layers.py for a whole signal, a chunking.Window for
    one window of it.
    """
    encoder = params["encoder"]
    x = ops.conv(audio[:, :, None], encoder["stem"])
    for block, stride in zip(encoder["blocks"], config.encoder_rates, strict=True):
        x = ops.residual_units(x, block["units"])
        x = ops.downsample(snake(x, block["snake"]), block["down"], stride, config.left_padding(stride))
    return ops.conv(snake(x, encoder["snake"]), encoder["head"])


def encode_frames(
    params: Params, config: CodecConfig, audio: Float[Array, "b n"], ops: Any = layers
) -> tuple[Float[Array, "b t c"], Float[Array, "b t c"]]:
    """Posterior mean and standard deviation (DACVAE); n must be a multiple of the hop. `ops`: see `encode_features`."""
    features = encode_features(params, config, audio, ops)
    mean, scale = jnp.split(ops.conv(features, params["bottleneck"]["in"]), 2, axis=-1)
    return mean, jax.nn.softplus(scale) + 1e-4


def decode_frames(
    params: Params, config: CodecConfig, latent: Float[Array, "b t c"], ops: Any = layers
) -> Float[Array, "b n"]:
    """Clean audio in -1..1 from latents (DAC: from the sum of quantized vectors); n = config.output_samples(t).

    `ops`: see `encode_features`.
    """
    decoder = params["decoder"]
    x = latent if config.quantized else ops.conv(latent, params["bottleneck"]["out"])
    x = ops.conv(x, decoder["stem"])
    for block, stride in zip(decoder["blocks"], config.decoder_rates, strict=True):
        x = ops.upsample(snake(x, block["snake"]), block["up"], stride, config.trim(stride))
        x = ops.residual_units(x, block["units"])
    return jnp.tanh(ops.conv(snake(x, decoder["snake"]), decoder["head"]))[:, :, 0]


def init_params(config: CodecConfig, key: PRNGKeyArray) -> Params:
    """Random initial parameters: normal kernels with unit gain, smaller in residual branches and the output layer."""
    keys = iter(jax.random.split(key, 256 + 3 * config.n_codebooks))

    def kernel(k: int, inputs: int, outputs: int, gain: float = 1.0, fan: int | None = None) -> Params:
        scale = gain / math.sqrt(fan or k * inputs)
        return {"kernel": scale * jax.random.normal(next(keys), (k, inputs, outputs)), "bias": jnp.zeros(outputs)}

    def unit(width: int) -> Params:
        return {
            "snake_in": jnp.ones(width),
            "wide": kernel(7, width, width),
            "snake_out": jnp.ones(width),
            "point": kernel(1, width, width, gain=0.3),
        }

    def units(width: int) -> list[Params]:
        return [unit(width) for _ in range(3)]

    encoder_blocks = []
    width = config.encoder_dim
    for stride in config.encoder_rates:
        down = kernel(2 * stride, width, 2 * width)
        encoder_blocks.append({"units": units(width), "snake": jnp.ones(width), "down": down})
        width *= 2
    encoder = {
        "stem": kernel(7, 1, config.encoder_dim),
        "blocks": encoder_blocks,
        "snake": jnp.ones(width),
        "head": kernel(3, width, config.latent_dim),
    }
    decoder_blocks = []
    width = config.decoder_dim
    for stride in config.decoder_rates:
        up = kernel(2 * stride, width, width // 2, fan=2 * width)  # each output sample depends on two inputs
        decoder_blocks.append({"snake": jnp.ones(width), "up": up, "units": units(width // 2)})
        width //= 2
    decoder = {
        "stem": kernel(7, config.latent_dim, config.decoder_dim),
        "blocks": decoder_blocks,
        "snake": jnp.ones(width),
        "head": kernel(7, width, 1, gain=0.1),
    }
    if config.quantized:
        bottleneck = {"quantizers": [_quantizer(config, kernel, next(keys)) for _ in range(config.n_codebooks)]}
    else:
        bottleneck = {
            "in": kernel(1, config.latent_dim, 2 * config.codebook_dim),
            "out": kernel(1, config.codebook_dim, config.latent_dim),
        }
    return {"encoder": encoder, "bottleneck": bottleneck, "decoder": decoder}


@functools.cache
def abstract_params(config: CodecConfig) -> Params:
    """The tree of `init_params` as shapes only (jax.ShapeDtypeStruct)."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def _quantizer(config: CodecConfig, kernel: Any, key: PRNGKeyArray) -> Params:
    """One stage: projections into and out of the codebook space, and codebook vectors from a unit normal."""
    return {
        "in": kernel(1, config.latent_dim, config.codebook_dim),
        "codebook": jax.random.normal(key, (config.codebook_size, config.codebook_dim)),
        "out": kernel(1, config.codebook_dim, config.latent_dim),
    }
