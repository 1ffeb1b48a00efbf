"""DACVAE's watermark: embeds a 16-bit message in clean audio (facebookresearch/dacvae, with AudioSeal's layers).

The whole network is causal and works on blocks of 320 samples (the product of its rates), so it runs over the clean
audio window by window: convolutions and LSTMs carry state from the previous window, and the result equals a single
pass. Parameters: see `init_watermark`. Strides are half the kernel widths.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from echotts.audio.marking import MESSAGE_BITS
from echotts.codec.chunking import Carry, Past, Stream
from echotts.codec.layers import Params, conv, downsample_pairs, upsample_pairs

STRENGTH = 0.25
CHANNELS = (32, 64, 128, 256, 512)
RATES = (2, 4, 5, 8)


class WatermarkStream:
    """Embeds a message (bits 0 or 1 for each row) in clean audio that arrives in pieces; see chunking.Stream.

    Audio is returned in whole blocks (see `block_length`), not clipped to -1..1. `widths` are window widths in blocks.
    """

    def __init__(self, params: Params, message: Int[np.ndarray, "b bits"], widths: Sequence[int]) -> None:
        block = block_length(params)

        def step(audio: Any, carry: Carry, before: Any, left: Any) -> tuple[tuple[Array, ...], Carry]:
            marked, carry = _mark_window(params, audio, message, carry)
            return (marked,), carry

        shapes = jax.eval_shape(partial(_first_window, width=block), params, message)
        self._stream = Stream(
            step,
            jax.device_put([np.zeros(shape.shape, shape.dtype) for shape in shapes]),
            widths=widths,
            inputs=block,
            outputs=block,
            delay=0,
            output_length=lambda blocks: blocks * block,
            empty=(np.zeros((len(message), 0), np.float32),),
        )
        self._message, self._block = message, block
        self._samples = 0

    def push(self, audio: Float[np.ndarray, "b n"]) -> Float[np.ndarray, "b m"]:
        self._samples += audio.shape[1]
        return self._stream.push(audio)[0]

    def finish(self) -> Float[np.ndarray, "b n"]:
        """The remaining audio; an incomplete last block is zero-padded for the network and cropped again."""
        missing = -self._samples % self._block
        (first,) = self._stream.push(np.zeros((len(self._message), missing), np.float32))
        marked = np.concatenate([first, *self._stream.finish()], axis=1)
        return marked[:, : marked.shape[1] - missing]


def block_length(params: Params) -> int:
    """Samples per LSTM step."""
    return math.prod(block["down"]["kernel"].shape[0] // 2 for block in params["down"])


def mark(params: Params, audio: Float[Array, "b n"], message: Int[Array, "b bits"], past: Past) -> Float[Array, "b n"]:
    """Embeds the message in one window; n must be a multiple of the block length."""
    x = _causal(audio[:, :, None], params["stem"], past)
    for block in params["down"]:
        x = _unit(x, block["unit"], past)
        stride = block["down"]["kernel"].shape[0] // 2
        x = downsample_pairs(past.before(jax.nn.elu(x), stride), block["down"], stride)
    x = x + _lstm(x, params["lstm_in"], past)
    x = _causal(jax.nn.elu(x), params["squeeze"], past)
    rows = 2 * jnp.arange(message.shape[1]) + message  # bit i selects row 2 i + bit of the table
    x = x + params["message"][rows].sum(axis=1)[:, None, :]
    x = _causal(x, params["expand"], past)
    x = x + _lstm(x, params["lstm_out"], past)
    for block in params["up"]:
        stride = block["up"]["kernel"].shape[0] // 2
        x = upsample_pairs(past.before(jax.nn.elu(x), 1), block["up"], stride)
        x = _unit(x, block["unit"], past)
    return audio + STRENGTH * _causal(jax.nn.elu(x), params["head"], past)[:, :, 0]


@partial(jax.jit, donate_argnames="carry")
def _mark_window(
    params: Params, audio: Float[Array, "b n"], message: Int[Array, "b bits"], carry: Carry
) -> tuple[Float[Array, "b n"], Carry]:
    past = Past(carry)
    with jax.default_matmul_precision("highest"):
        return mark(params, audio, message, past), past.carry


def _first_window(params: Params, message: Int[Array, "b bits"], width: int) -> Carry:
    past = Past(None)
    mark(params, jnp.zeros((message.shape[0], width)), message, past)
    return past.carry


def _causal(x: Float[Array, "b t i"], params: Params, past: Past) -> Float[Array, "b t o"]:
    return conv(past.before(x, params["kernel"].shape[0] - 1), params, padding=(0, 0))


def _unit(x: Float[Array, "b t c"], params: Params, past: Past) -> Float[Array, "b t c"]:
    y = _causal(jax.nn.elu(x), params["wide"], past)
    return x + conv(jax.nn.elu(y), params["point"])


def _lstm(x: Float[Array, "b t c"], layers: list[Params], past: Past) -> Float[Array, "b t c"]:
    """Stacked LSTM layers, gates in the order input, forget, cell, output."""
    for layer in layers:
        gates = x @ layer["input"] + layer["bias"]
        width = layer["hidden"].shape[0]
        start = past.recall((2, x.shape[0], width))
        kernel = layer["hidden"]

        def step(state: tuple[Array, Array], gate: Array, kernel: Array = kernel) -> tuple[tuple[Array, Array], Array]:
            hidden, cell = state
            new, keep, value, show = jnp.split(gate + hidden @ kernel, 4, axis=-1)
            cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(new) * jnp.tanh(value)
            hidden = jax.nn.sigmoid(show) * jnp.tanh(cell)
            return (hidden, cell), hidden

        end, y = jax.lax.scan(step, (start[0], start[1]), jnp.moveaxis(gates, 1, 0))
        past.carry.append(jnp.stack(end))
        x = jnp.moveaxis(y, 0, 1)
    return x


def init_watermark(
    key: PRNGKeyArray,
    channels: tuple[int, ...] = CHANNELS,
    rates: tuple[int, ...] = RATES,
    message_channels: int = 128,
    bits: int = MESSAGE_BITS,
) -> Params:
    """Random initial parameters; `channels` and `rates` are ordered from the waveform inwards."""
    keys = iter(jax.random.split(key, 256))

    def kernel(k: int, inputs: int, outputs: int, gain: float = 1.0) -> Params:
        scale = gain / math.sqrt(k * inputs)
        return {"kernel": scale * jax.random.normal(next(keys), (k, inputs, outputs)), "bias": jnp.zeros(outputs)}

    def unit(width: int) -> Params:
        return {"wide": kernel(3, width, width // 2), "point": kernel(1, width // 2, width)}

    def lstm(width: int) -> list[Params]:
        def layer() -> Params:
            weights = {name: kernel(1, width, 4 * width)["kernel"][0] for name in ("input", "hidden")}
            return weights | {"bias": jnp.zeros(4 * width)}

        return [layer(), layer()]

    pairs = list(zip(channels, channels[1:], rates, strict=False))
    inner = channels[-1]
    down = [{"unit": unit(low), "down": kernel(2 * rate, low, high)} for low, high, rate in pairs]
    up = [{"up": kernel(2 * rate, high, low, gain=1.4), "unit": unit(low)} for low, high, rate in reversed(pairs)]
    return {
        "stem": kernel(7, 1, channels[0]),
        "down": down,
        "lstm_in": lstm(inner),
        "squeeze": kernel(7, inner, message_channels),
        "message": jax.random.normal(next(keys), (2 * bits, message_channels)),
        "expand": kernel(7, message_channels, inner),
        "lstm_out": lstm(inner),
        "up": up,
        "head": kernel(7, channels[0], 1),
    }
