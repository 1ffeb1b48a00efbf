"""DAC without padding, as descript-audio-codec runs it over the chunks of a long recording.

Every layer computes only outputs whose kernel lies fully inside the input, so the audio is shorter than its frames.
Chunks are decoded separately and concatenated. This is used only for .dac files of that package; echotts encodes a
recording as a whole.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from echotts.codec import layers
from echotts.codec.backbone import decode_frames
from echotts.codec.config import CodecConfig
from echotts.codec.layers import Params
from echotts.codec.quantizer import embed


class _Unpadded:
    """The layers of layers.py that a decoder uses, with the same names and arguments."""

    @staticmethod
    def conv(x: Float[Array, "b t i"], params: Params, dilation: int = 1) -> Float[Array, "b u o"]:
        return layers.conv(x, params, dilation, padding=(0, 0))

    @staticmethod
    def upsample(x: Float[Array, "b t i"], params: Params, stride: int, trim: int) -> Float[Array, "b u o"]:
        del trim  # the output is not cropped: (t + 1) * stride samples
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
    """Audio of one chunk. ValueError if it is too short for the kernels."""
    samples = codes.shape[2] - 6
    for stride in config.decoder_rates:
        samples = (samples + 1) * stride - 6 * sum(layers.DILATIONS)
    if samples - 6 < 1:
        raise ValueError(
            f"a chunk of {codes.shape[2]} frames is shorter than the decoder's kernels: the file is damaged"
        )
    return _decode(params, config, codes)
