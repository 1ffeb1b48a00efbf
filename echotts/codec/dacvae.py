"""DACVAE: audio to a sequence of latents, 25 a second, and back (facebookresearch/dacvae).

Pure functions over nested dictionaries of folded float32 parameters; sizes come from a CodecConfig that is read
from the weights file. The decoder ends in the audio head; the watermark lives in watermark.py.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from echotts.codec import layers
from echotts.codec.layers import Params, snake


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Sizes of a DACVAE. Widths are in channels; the decoder's rates are the encoder's reversed."""

    encoder_dim: int = 64
    encoder_rates: tuple[int, ...] = (2, 8, 10, 12)
    latent_dim: int = 1024
    decoder_dim: int = 1536
    decoder_rates: tuple[int, ...] = (12, 10, 8, 2)
    codebook_dim: int = 128
    sample_rate: int = 48000

    def __post_init__(self) -> None:
        if math.prod(self.encoder_rates) != math.prod(self.decoder_rates):
            raise ValueError(f"encoder_rates {self.encoder_rates} and decoder_rates {self.decoder_rates} differ in hop")
        if self.decoder_dim % 2 ** len(self.decoder_rates):
            raise ValueError(f"decoder_dim {self.decoder_dim} does not halve {len(self.decoder_rates)} times")

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return math.prod(self.encoder_rates)

    @property
    def latent_channels(self) -> int:
        return self.codebook_dim

    @property
    def output_channels(self) -> int:
        """Channels that reach the audio head."""
        return self.decoder_dim // 2 ** len(self.decoder_rates)


def encode_frames(
    params: Params, config: CodecConfig, audio: Float[Array, "b n"], ops: Any = layers
) -> tuple[Float[Array, "b t c"], Float[Array, "b t c"]]:
    """Posterior mean and standard deviation; n must be a multiple of the hop.

    `ops` has conv, downsample, upsample and residual_units: layers.py for a whole signal, a chunking.Window for a part.
    """
    encoder = params["encoder"]
    x = ops.conv(audio[:, :, None], encoder["stem"])
    for block, stride in zip(encoder["blocks"], config.encoder_rates, strict=True):
        x = ops.residual_units(x, block["units"])
        x = ops.downsample(snake(x, block["snake"]), block["down"], stride)
    x = ops.conv(snake(x, encoder["snake"]), encoder["head"])
    mean, scale = jnp.split(ops.conv(x, params["bottleneck"]["in"]), 2, axis=-1)
    return mean, jax.nn.softplus(scale) + 1e-4


def decode_frames(
    params: Params, config: CodecConfig, latent: Float[Array, "b t c"], ops: Any = layers
) -> Float[Array, "b n"]:
    """Clean audio in -1..1, n = t * hop: the main path and the audio head. `ops`: see `encode_frames`."""
    decoder = params["decoder"]
    x = ops.conv(latent, params["bottleneck"]["out"])
    x = ops.conv(x, decoder["stem"])
    for block, stride in zip(decoder["blocks"], config.decoder_rates, strict=True):
        x = ops.upsample(snake(x, block["snake"]), block["up"], stride)
        x = ops.residual_units(x, block["units"])
    return jnp.tanh(ops.conv(snake(x, decoder["snake"]), decoder["head"]))[:, :, 0]


def init_params(config: CodecConfig, key: PRNGKeyArray) -> Params:
    """Random parameters for training: normal kernels of unit gain, quieter residual branches and audio head."""
    keys = iter(jax.random.split(key, 256))

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
        up = kernel(2 * stride, width, width // 2, fan=2 * width)  # an output sample sees two inputs
        decoder_blocks.append({"snake": jnp.ones(width), "up": up, "units": units(width // 2)})
        width //= 2
    decoder = {
        "stem": kernel(7, config.latent_dim, config.decoder_dim),
        "blocks": decoder_blocks,
        "snake": jnp.ones(width),
        "head": kernel(7, width, 1, gain=0.1),
    }
    bottleneck = {
        "in": kernel(1, config.latent_dim, 2 * config.codebook_dim),
        "out": kernel(1, config.codebook_dim, config.latent_dim),
    }
    return {"encoder": encoder, "bottleneck": bottleneck, "decoder": decoder}
