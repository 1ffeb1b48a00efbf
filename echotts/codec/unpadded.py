"""DAC without padding, as descript-audio-codec runs it over the chunks of a long recording.

Every layer answers where its kernel lies inside of its input, so audio is shorter than its frames; chunks are decoded
one by one and joined. Only .dac files of that package are read this way: here a recording is encoded whole.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from echotts.codec import layers
from echotts.codec.backbone import CodecConfig, decode_frames
from echotts.codec.layers import Params
from echotts.codec.quantizer import embed


class _Unpadded:
    """layers.py with the names and arguments that a decoder uses."""

    @staticmethod
    def conv(x: Float[Array, "b t i"], params: Params, dilation: int = 1) -> Float[Array, "b u o"]:
        return layers.conv(x, params, dilation, padding=(0, 0))

    @staticmethod
    def upsample(x: Float[Array, "b t i"], params: Params, stride: int, trim: int) -> Float[Array, "b u o"]:
        del trim  # nothing is cut: (t + 1) * stride samples
        return layers.upsample_pairs(jnp.pad(x, ((0, 0), (1, 1), (0, 0))), params, stride)

    @classmethod
    def residual_units(cls, x: Float[Array, "b t c"], units: list[Params]) -> Float[Array, "b u c"]:
        for unit, dilation in zip(units, layers.DILATIONS, strict=True):
            y = cls.conv(layers.snake(x, unit["snake_in"]), unit["wide"], dilation)
            y = cls.conv(layers.snake(y, unit["snake_out"]), unit["point"])
            cut = (x.shape[1] - y.shape[1]) // 2
            x = x[:, cut : x.shape[1] - cut] + y
        return x


@partial(jax.jit, static_argnames="config")
def _decode(params: Params, config: CodecConfig, codes: Int[Array, "b q t"]) -> Float[Array, "b n"]:
    with jax.default_matmul_precision("highest"):
        ops: Any = _Unpadded
        return decode_frames(params, config, embed(params, codes), ops)


def decode_chunk(params: Params, config: CodecConfig, codes: Int[Any, "b q t"]) -> Float[Array, "b n"]:
    """Audio of one chunk. ValueError where it is too short for the kernels."""
    samples = codes.shape[2] - 6
    for stride in config.decoder_rates:
        samples = (samples + 1) * stride - 6 * sum(layers.DILATIONS)
    if samples - 6 < 1:
        raise ValueError(
            f"a chunk of {codes.shape[2]} frames is shorter than the decoder's kernels: the file is damaged"
        )
    return _decode(params, config, codes)
