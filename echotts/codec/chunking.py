"""Running a convolutional network over a signal window by window, with exactly the result of a single pass.

Windows have a few fixed widths, so that only a few shapes are compiled. A window does not recompute its neighbours'
work: every convolution keeps the last inputs of the previous window (as many as its kernel spans) and produces as many
outputs as the window has inputs, delayed by the half of the kernel that looks ahead. Positions before the start and
past the end of the signal are zeroed at each layer's input, which reproduces the zero padding of a single pass. The
result is therefore the same for every window width and every signal length, without cross-fading, and memory use does
not depend on the length. Rows of a batch may have different lengths.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from echotts.codec import layers
from echotts.codec.backbone import abstract_params
from echotts.codec.config import CodecConfig
from echotts.codec.layers import Params

Carry = list[Array]
Pieces = tuple[np.ndarray, ...]

# Distances beyond the start or end of a window are clipped here, which is further than any kernel spans: positions
# then fit 32 bits in signals of any length.
_FAR_UNITS = 4096


class Past:
    """What streaming layers carry from one window to the next, in the order in which the layers ask for it.

    `carry` is what the previous window left in its own `carry`; None stands for zeros of whatever shape is requested.
    """

    def __init__(self, carry: Carry | None) -> None:
        self.carry: Carry = []
        self._remembered: Iterator[Array] | None = None if carry is None else iter(carry)

    def recall(self, shape: tuple[int, ...]) -> Array:
        """The next array carried over from the previous window."""
        return jnp.zeros(shape) if self._remembered is None else next(self._remembered)

    def before(self, x: Float[Array, "b t c"], count: int) -> Float[Array, "b u c"]:
        """x with the `count` preceding values prepended; the last `count` of the result are carried over."""
        joined = jnp.concatenate([self.recall((x.shape[0], count, x.shape[2])), x], axis=1)
        self.carry.append(joined[:, x.shape[1] :])
        return joined


class Window:
    """The layers of layers.py over one window of a longer signal, with the same names and arguments.

    `offset` (zero or negative) is how far the current positions lag behind the window's. It and the lengths of the
    carried arrays are constants of the network; `before` and `left` may change between calls of a compiled function.

    Args:
        past: what the previous window left; its `carry` goes to the next window.
        before: number of input positions before this window.
        left: number of positions from the window's start to the end of each row's signal; 0 or negative past the end.
    """

    def __init__(self, past: Past, before: Int[Array, ""], left: Int[Array, " b"]) -> None:
        self.offset = 0
        self._past, self._before, self._left = past, before, left

    def conv(self, x: Float[Array, "b t i"], params: Params, dilation: int = 1) -> Float[Array, "b t o"]:
        reach = (layers.kernel_width(params) - 1) * dilation
        if reach:
            x = self._past.before(self._inside(x), reach)
            self.offset -= reach // 2
        return layers.conv(x, params, dilation, padding=(0, 0))

    def downsample(self, x: Float[Array, "b t i"], params: Params, stride: int, left: int) -> Float[Array, "b u o"]:
        # Output o reads 2 * stride inputs, from o * stride - left on. The first new output is the first one that
        # reads at least one input of this window.
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
        """Zeroes the positions outside the signal."""
        position = self.offset + jnp.arange(x.shape[1])
        inside = (position >= -self._before) & (position < self._left[:, None])
        return jnp.where(inside[:, :, None], x, 0)


class Stream:
    """A signal passing through a network piece by piece; each call returns the outputs that are fully determined.

    The concatenated outputs of `push` and `finish` equal those of a single pass. Arrays are (rows, time, ...).

    Args:
        step: runs one window: (input, carry, before, left) -> (outputs, carry); see `Window` for the last two,
            which count inputs. Each width is compiled once.
        carry: passed to `step` with the first window.
        widths: window widths, in units of `inputs`. Input is buffered until it fills the smallest.
        inputs, outputs: number of input and of output positions per unit.
        delay: number of positions by which the outputs lag.
        output_length: maps a signal's length in units to its number of outputs.
        empty: outputs for no input, which define shapes and dtypes.
        lengths: length of each row, in units, where the lengths are known and differ.
    """

    def __init__(
        self,
        step: Callable[[Any, Carry, Any, Any], tuple[tuple[Array, ...], Carry]],
        carry: Carry,
        *,
        widths: Sequence[int],
        inputs: int,
        outputs: int,
        delay: int,
        output_length: Callable[[int], int],
        empty: Pieces,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self._step, self._carry, self._widths, self._empty = step, carry, sorted(widths), empty
        self._inputs, self._outputs, self._delay, self._output_length = inputs, outputs, delay, output_length
        self._lengths = None if lengths is None else np.asarray(lengths, np.int64)
        self._far = _FAR_UNITS + self._widths[-1]
        self._start = 0  # units consumed so far
        self._pending: np.ndarray | None = None
        self._finished = False

    def push(self, piece: np.ndarray) -> Pieces:
        """The newly determined outputs, possibly empty. Raises ValueError after `finish`."""
        if self._finished:
            raise ValueError("the stream is finished: create a new one")
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
        """The remaining outputs. The total input must be a whole number of units."""
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
        """One window's outputs, cropped to the signal, which ends at `total` units where that is known."""
        if self._lengths is not None:
            ends = self._lengths
        else:
            ends = np.full(len(window), self._start + self._far if total is None else total)
        left = np.clip(ends - self._start, -self._far, self._far) * self._inputs
        before = min(self._start, self._far) * self._inputs
        outputs, self._carry = self._step(window, self._carry, np.int32(before), left.astype(np.int32))
        first = self._start * self._outputs - self._delay
        self._start += window.shape[1] // self._inputs
        last = first + outputs[0].shape[1] if total is None else self._output_length(total)
        return tuple(np.asarray(output)[:, max(0, -first) : max(0, last - first)] for output in outputs)

    def _joined(self, pieces: list[Pieces]) -> Pieces:
        if len(pieces) < 2:
            return pieces[0] if pieces else self._empty
        return tuple(np.concatenate(parts, axis=1) for parts in zip(*pieces, strict=True))


def plan(network: Callable[..., Any], config: CodecConfig, shape: tuple[int, ...]) -> tuple[Carry, int]:
    """Zeroed carry for the first window of this input shape, and the number of positions by which the output lags.

    `network` is called as network(params, config, x, window); backbone.decode_frames is an example.
    """
    shapes, delay = _trace(network, config, shape)
    # NumPy, because jnp.zeros would compile a program for each shape
    return jax.device_put([np.zeros(entry.shape, entry.dtype) for entry in shapes]), delay


@lru_cache(maxsize=64)
def _trace(network: Callable[..., Any], config: CodecConfig, shape: tuple[int, ...]) -> tuple[Any, int]:
    offset = 0

    def run(params: Params, x: Array, before: Array, left: Array) -> Carry:
        nonlocal offset
        past = Past(None)
        window = Window(past, before, left)
        network(params, config, x, window)
        offset = window.offset
        return past.carry

    params = abstract_params(config)
    before, left = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    return jax.eval_shape(run, params, jax.ShapeDtypeStruct(shape, jnp.float32), before, left), -offset
