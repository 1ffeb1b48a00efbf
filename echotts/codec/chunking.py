"""Networks over signals that come in pieces: windows of a few compiled shapes, equal to the whole signal at once.

A window does not repeat its neighbours' work. Every convolution remembers the last inputs of the window before (as
many as its kernel reaches) and answers for as many outputs as the window brings inputs, later by the half of the
kernel that looks ahead. Positions before the start and past the end are zeroed at each layer's input, which is the
zero padding that a whole signal gets there: so the result is the same for every window width and every length, no
padding leaks in, nothing is cross-faded, and the memory needed does not depend on the length. Rows of a batch may
have lengths of their own.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from echotts.codec import layers
from echotts.codec.backbone import CodecConfig, init_params
from echotts.codec.layers import Params

Memory = list[Array]
Pieces = tuple[np.ndarray, ...]

# What lies further before or after a window than any kernel reaches is not told apart, so that positions fit 32 bits
# in signals of any length.
_FAR_UNITS = 4096


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
    remembered are constants of the network; `before` and `left` may change from call to call of a compiled function.

    Args:
        past: what the window before left; its `memory` is for the next.
        before: positions of the network's input that came before this window.
        left: positions from the window's start to the end of each row's signal; 0 or negative past the end.
    """

    def __init__(self, past: Past, before: Int[Array, ""], left: Int[Array, " b"]) -> None:
        self.offset = 0
        self._past, self._before, self._left = past, before, left

    def conv(self, x: Float[Array, "b t i"], params: Params, dilation: int = 1) -> Float[Array, "b t o"]:
        reach = (params["kernel"].shape[0] - 1) * dilation
        if reach:
            x = self._past.before(self._inside(x), reach)
            self.offset -= reach // 2
        return layers.conv(x, params, dilation, padding=(0, 0))

    def downsample(self, x: Float[Array, "b t i"], params: Params, stride: int, left: int) -> Float[Array, "b u o"]:
        # Output o reads inputs from o * stride - left on, 2 * stride of them. The first new output is the first
        # whose inputs did not all come before this window.
        first = (self.offset - 2 * stride + left) // stride + 1
        past = self.offset - (first * stride - left)
        joined = self._past.before(self._inside(x), past)
        y = layers.downsample_pairs(joined[:, : x.shape[1] + stride], params, stride)
        self.offset = first
        self._before = self._before // stride
        self._left = self._left // stride
        return y

    def upsample(self, x: Float[Array, "b t i"], params: Params, stride: int, trim: int) -> Float[Array, "b u o"]:
        y = layers.upsample_pairs(self._past.before(self._inside(x), 1), params, stride)
        self.offset = self.offset * stride - (stride + 1) // 2
        self._before = self._before * stride
        self._left = self._left * stride - trim
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
        position = self.offset + jnp.arange(x.shape[1])
        inside = (position >= -self._before) & (position < self._left[:, None])
        return jnp.where(inside[:, :, None], x, 0)


class Stream:
    """A signal on its way through a network: pieces in, and out what they and all before them determine.

    The outputs of `push` and `finish`, joined, are those of the whole signal. Arrays are (rows, time, ...).

    Args:
        step: runs one window: (input, memory, before, left) -> (outputs, memory); see `Window` for the last two,
            which are in inputs. Each width is compiled once.
        memory: what `step` finds before the first window.
        widths: of windows, in units of `inputs`. Input waits until it fills the smallest.
        inputs, outputs: positions of the input and of the outputs in a unit.
        delay: by how many positions the outputs are late.
        output_length: outputs of a signal of so many units.
        empty: outputs of no input, which give their shapes and dtypes.
        lengths: of each row, in units, where they are known and differ.
    """

    def __init__(
        self,
        step: Callable[[Any, Memory, Any, Any], tuple[tuple[Array, ...], Memory]],
        memory: Memory,
        *,
        widths: Sequence[int],
        inputs: int,
        outputs: int,
        delay: int,
        output_length: Callable[[int], int],
        empty: Pieces,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self._step, self._memory, self._widths, self._empty = step, memory, sorted(widths), empty
        self._inputs, self._outputs, self._delay, self._output_length = inputs, outputs, delay, output_length
        self._lengths = None if lengths is None else np.asarray(lengths, np.int64)
        self._far = _FAR_UNITS + self._widths[-1]
        self._start = 0  # units that went into the network
        self._pending: np.ndarray | None = None
        self._finished = False

    def push(self, piece: np.ndarray) -> Pieces:
        """The outputs that are determined now; they may be empty. ValueError after `finish`."""
        if self._finished:
            raise ValueError("the stream is finished: make another one")
        waiting = self._pending
        pending = piece if waiting is None or not waiting.shape[1] else np.concatenate([waiting, piece], axis=1)
        position, pieces = 0, []
        while fitting := [w for w in self._widths if w * self._inputs <= pending.shape[1] - position]:
            end = position + fitting[-1] * self._inputs
            pieces.append(self._run(pending[:, position:end], None))
            position = end
        self._pending = pending[:, position:].copy()
        return self._joined(pieces)

    def finish(self) -> Pieces:
        """The outputs that waited for more input; the input must have come in whole units."""
        self._finished = True
        if self._pending is None:
            return self._empty
        pending, pieces = self._pending, []
        total = self._start + pending.shape[1] // self._inputs
        end = self._output_length(total)
        while (missing := end + self._delay - self._start * self._outputs) > 0:
            units = -(-missing // self._outputs)
            width = next((w for w in self._widths if w >= units), self._widths[-1])
            window = np.zeros((len(pending), width * self._inputs, *pending.shape[2:]), pending.dtype)
            taken = pending[:, : window.shape[1]]
            window[:, : taken.shape[1]] = taken
            pending = pending[:, taken.shape[1] :]
            pieces.append(self._run(window, total))
        return self._joined(pieces)

    def _run(self, window: np.ndarray, total: int | None) -> Pieces:
        """One window's outputs inside of the signal, which ends at `total` units where that is known."""
        if self._lengths is not None:
            ends = self._lengths
        else:
            ends = np.full(len(window), self._start + self._far if total is None else total)
        left = np.clip(ends - self._start, -self._far, self._far) * self._inputs
        before = min(self._start, self._far) * self._inputs
        outputs, self._memory = self._step(window, self._memory, np.int32(before), left.astype(np.int32))
        first = self._start * self._outputs - self._delay
        self._start += window.shape[1] // self._inputs
        last = first + outputs[0].shape[1] if total is None else self._output_length(total)
        return tuple(np.asarray(output)[:, max(0, -first) : max(0, last - first)] for output in outputs)

    def _joined(self, pieces: list[Pieces]) -> Pieces:
        if len(pieces) < 2:
            return pieces[0] if pieces else self._empty
        return tuple(np.concatenate(parts, axis=1) for parts in zip(*pieces, strict=True))


def plan(network: Callable[..., Any], config: CodecConfig, shape: tuple[int, ...]) -> tuple[Memory, int]:
    """The empty memory before the first window of this input shape, and by how many positions the output is late.

    `network` is called as network(params, config, x, window), such as backbone.decode_frames.
    """
    shapes, delay = _trace(network, config, shape)
    # made by NumPy: jnp.zeros would compile a program for each shape
    return jax.device_put([np.zeros(entry.shape, entry.dtype) for entry in shapes]), delay


@lru_cache(maxsize=64)
def _trace(network: Callable[..., Any], config: CodecConfig, shape: tuple[int, ...]) -> tuple[Any, int]:
    offset = 0

    def run(params: Params, x: Array, before: Array, left: Array) -> Memory:
        nonlocal offset
        past = Past(None)
        window = Window(past, before, left)
        network(params, config, x, window)
        offset = window.offset
        return past.memory

    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    before, left = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    return jax.eval_shape(run, params, jax.ShapeDtypeStruct(shape, jnp.float32), before, left), -offset
