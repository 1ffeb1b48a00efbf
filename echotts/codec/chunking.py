"""Encode and decode signals of any length in windows of one compiled shape, equal to the whole.

A window does not repeat its neighbours' work. Every convolution remembers the last inputs of the window before (as
many as its kernel reaches) and answers for as many outputs as the window brings inputs, later by the half of the
kernel that looks ahead. Positions before the start and past the end are zeroed at each layer's input, which is the
zero padding that a whole signal gets there: so the result is the same for every window width and every length, no
padding leaks in, nothing is cross-faded, and the memory needed does not depend on the length.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int, PRNGKeyArray

from echotts.codec import layers
from echotts.codec.dacvae import CodecConfig, decode_frames, encode_frames, init_params
from echotts.codec.layers import Params

Memory = list[Array]


class Past:
    """What layers that stream keep from one window to the next, in the order in which they ask for it.

    `memory` is what the window before left in its own `memory`; None stands for zeros of whatever shape is asked.
    """

    def __init__(self, memory: Memory | None) -> None:
        self.memory: Memory = []
        self._remembered: Iterator[Array] | None = None if memory is None else iter(memory)

    def recall(self, shape: tuple[int, ...]) -> Array:
        """The next remembered array."""
        return jnp.zeros(shape) if self._remembered is None else next(self._remembered)

    def before(self, x: Float[Array, "b t c"], count: int) -> Float[Array, "b u c"]:
        """x after the `count` values that came before it; the last `count` of both are remembered."""
        joined = jnp.concatenate([self.recall((x.shape[0], count, x.shape[2])), x], axis=1)
        self.memory.append(joined[:, x.shape[1] :])
        return joined


class Window:
    """The layers of layers.py over one window of a longer signal, with the same names and arguments.

    `offset`, how far the current positions lag behind the window's (zero or negative), and the lengths of what is
    remembered are constants of the network; `index` and `length` may change from call to call of a compiled function.

    Args:
        past: what the window before left; its `memory` is for the next.
        index: number of this window in the signal, from 0.
        length: of the whole signal, in positions of the network's input.
        width: of the window, in the same.
    """

    def __init__(self, past: Past, index: Int[Array, ""], length: Int[Array, ""], width: int) -> None:
        self.offset = 0
        self._past, self._index, self._length, self._width = past, index, length, width

    def conv(self, x: Float[Array, "b t i"], params: Params, dilation: int = 1) -> Float[Array, "b t o"]:
        reach = (params["kernel"].shape[0] - 1) * dilation
        if reach:
            x = self._past.before(self._inside(x), reach)
            self.offset -= reach // 2
        return layers.conv(x, params, dilation, padding=(0, 0))

    def downsample(self, x: Float[Array, "b t i"], params: Params, stride: int) -> Float[Array, "b u o"]:
        # Output o reads inputs from o * stride - stride // 2 on, 2 * stride of them. The first new output is the
        # first whose inputs did not all come before this window.
        first = (self.offset - 2 * stride + stride // 2) // stride + 1
        past = self.offset - (first * stride - stride // 2)
        joined = self._past.before(self._inside(x), past)
        y = layers.downsample_pairs(joined[:, : x.shape[1] + stride], params, stride)
        self.offset = first
        self._width //= stride
        self._length //= stride
        return y

    def upsample(self, x: Float[Array, "b t i"], params: Params, stride: int) -> Float[Array, "b u o"]:
        y = layers.upsample_pairs(self._past.before(self._inside(x), 1), params, stride)
        self.offset = self.offset * stride - (stride + 1) // 2
        self._width *= stride
        self._length *= stride
        return y

    def residual_units(self, x: Float[Array, "b t c"], units: list[Params]) -> Float[Array, "b t c"]:
        for unit, dilation in zip(units, layers.DILATIONS, strict=True):
            before = self.offset
            y = self.conv(layers.snake(x, unit["snake_in"]), unit["wide"], dilation)
            y = self.conv(layers.snake(y, unit["snake_out"]), unit["point"])
            x = self._past.before(x, before - self.offset)[:, : x.shape[1]] + y
        return x

    def _inside(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        """Zeros outside of the signal."""
        position = self._index * self._width + self.offset + jnp.arange(x.shape[1])
        inside = (position >= 0) & (position < self._length)
        return jnp.where(inside[None, :, None], x, 0)


@partial(jax.jit, static_argnames="config", donate_argnames="memory")
def _decode_window(
    params: Params, config: CodecConfig, latent: Float[Array, "b t c"], memory: Memory, index: Any, length: Any
) -> tuple[Float[Array, "b n"], Memory]:
    past = Past(memory)
    return decode_frames(params, config, latent, Window(past, index, length, latent.shape[1])), past.memory


@partial(jax.jit, static_argnames="config", donate_argnames="memory")
def _encode_window(
    params: Params, config: CodecConfig, audio: Float[Array, "b n"], memory: Memory, index: Any, length: Any
) -> tuple[tuple[Float[Array, "b t c"], Float[Array, "b t c"]], Memory]:
    past = Past(memory)
    return encode_frames(params, config, audio, Window(past, index, length, audio.shape[1])), past.memory


def decode_windows(
    params: Params, config: CodecConfig, latent: Float[np.ndarray, "b t c"], frames: int
) -> Float[np.ndarray, "b n"]:
    """Clean audio of latents of any length, `frames` at a time; n = t * hop."""
    batch, total, channels = latent.shape
    hop = config.hop_length
    memory, delay = _plan(decode_frames, config, (batch, frames, channels))
    audio = np.empty((batch, total * hop), np.float32)
    for index in range(math.ceil((total * hop + delay) / (frames * hop))):
        window = cut(latent, index * frames, frames)
        samples, memory = _decode_window(params, config, window, memory, index, total)
        place(audio, np.asarray(samples), index * frames * hop - delay)
    return audio


def lower_decode_window(config: CodecConfig, frames: int, place: Sharding) -> tuple[Any, int]:
    """The program of one window of `decode_windows`, for a device that need not be here, and the delay in samples."""
    shape = (1, frames, config.latent_channels)
    memory, delay = _trace(decode_frames, config, shape)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    arguments = (params, jax.ShapeDtypeStruct(shape, jnp.float32), memory, number, number)
    params, latent, memory, index, length = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), arguments
    )
    with jax.default_matmul_precision("highest"):  # as Codec.decode computes
        return _decode_window.lower(params, config, latent, memory, index, length), delay


def encode_windows(
    params: Params, config: CodecConfig, audio: Float[np.ndarray, "b n"], frames: int
) -> tuple[Float[np.ndarray, "b t c"], Float[np.ndarray, "b t c"]]:
    """Posterior mean and standard deviation of audio of any length, `frames` at a time; t = ceil(n / hop).

    The last frame is filled by reflection, with zeros where there is too little to reflect (see `fill`).
    """
    batch, samples = audio.shape
    hop = config.hop_length
    tail = fill(audio, hop)
    total = (samples + tail.shape[1]) // hop
    width = frames * hop
    memory, delay = _plan(encode_frames, config, (batch, width))
    mean = np.empty((batch, total, config.latent_channels), np.float32)
    std = np.empty_like(mean)
    for index in range(math.ceil((total + delay) / frames)):
        window = cut(audio, index * width, width)
        place(window, tail, samples - index * width)
        parts, memory = _encode_window(params, config, window, memory, index, total * hop)
        for target, part in zip((mean, std), parts, strict=True):
            place(target, np.asarray(part), index * frames - delay)
    return mean, std


def fill(audio: Float[np.ndarray, "b n"], multiple: int) -> Float[np.ndarray, "b m"]:
    """What must follow audio to make its length a multiple: its reflection, as facebookresearch/dacvae pads.

    A reflection needs more samples than it adds. Audio of half a frame or less has too few (there PyTorch raises):
    it is followed by zeros instead.
    """
    batch, samples = audio.shape
    missing = -samples % multiple
    if missing >= samples:
        return np.zeros((batch, missing), np.float32)
    return audio[:, samples - 1 - missing : samples - 1][:, ::-1]


def cut(source: Float[np.ndarray, "b n ..."], start: int, count: int) -> Float[np.ndarray, "b m ..."]:
    """A copy of `count` positions from `start`; zeros past the end."""
    piece = np.zeros((source.shape[0], count, *source.shape[2:]), np.float32)
    inside = source[:, start : start + count]
    piece[:, : inside.shape[1]] = inside
    return piece


def place(target: Float[np.ndarray, "b n ..."], piece: Float[np.ndarray, "b m ..."], start: int) -> None:
    """Writes the piece into the target from position `start`, which may be negative, as far as both reach."""
    first, last = max(0, start), min(target.shape[1], start + piece.shape[1])
    if first < last:
        target[:, first:last] = piece[:, first - start : last - start]


def frame_noise(key: PRNGKeyArray, batch: int, frames: int, channels: int) -> Float[np.ndarray, "b t c"]:
    """Unit normal noise, a function of the key and the frame's number only: the same in windows as in the whole."""
    noise = np.empty((batch, frames, channels), np.float32)
    for start in range(0, frames, _NOISE_BLOCK):
        place(noise, np.asarray(_noise_block(key, start, batch, channels)), start)
    return noise


_NOISE_BLOCK = 64


@partial(jax.jit, static_argnames=("batch", "channels"))
def _noise_block(key: PRNGKeyArray, start: Any, batch: int, channels: int) -> Float[Array, "b t c"]:
    numbers = start + jnp.arange(_NOISE_BLOCK)
    draw = jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), (batch, channels)), out_axes=1)
    return draw(numbers)


def _plan(network: Callable[..., Any], config: CodecConfig, shape: tuple[int, ...]) -> tuple[Memory, int]:
    """The empty memory before the first window of this shape, and by how many positions the output is late."""
    shapes, delay = _trace(network, config, shape)
    # made by NumPy: jnp.zeros would compile a program for each shape
    return jax.device_put([np.zeros(entry.shape, entry.dtype) for entry in shapes]), delay


@lru_cache(maxsize=64)
def _trace(network: Callable[..., Any], config: CodecConfig, shape: tuple[int, ...]) -> tuple[Any, int]:
    offset = 0

    def run(params: Params, x: Array, index: Array, length: Array) -> Memory:
        nonlocal offset
        past = Past(None)
        window = Window(past, index, length, x.shape[1])
        network(params, config, x, window)
        offset = window.offset
        return past.memory

    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = jax.eval_shape(run, params, jax.ShapeDtypeStruct(shape, jnp.float32), number, number)
    return shapes, -offset
