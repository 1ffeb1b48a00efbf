"""Equivalent layers with fewer operations, for CPUs, where matrix products dominate a codec's time.

A convolution of width 7 is split into 4 + 3 taps; each part computes 4 outputs by the Toom-Cook scheme (S. Winograd,
Arithmetic Complexity of Computations, 1980) with 7 and 6 points. That takes 13 products of (t / 4, in) by (in, out)
instead of 28. Its rounding error is two and a half times that of the plain sum of products (rms 9e-7 instead of 4e-7,
for 192 channels); a single scheme for all 7 taps would have ten times the error. Transposed convolutions get their
kernel in the layout of their single matrix product. Kernels are transformed once, by `prepare`. Programs take longer to
compile, which pays off only for wide networks.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Params = dict[str, Any]

WIDTH = 7
OUTPUTS = 4
FEWEST_CHANNELS = 64  # minimum number of channels for which it pays off
_POINTS = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0)  # and infinity; a scheme uses the first ones it needs


def prepare(part: Params) -> Params:
    """Parameters of an encoder or decoder with kernels transformed for this module; layers.py accepts both forms."""
    return _prepared(part, "")


def fast_conv(x: Float[Array, "b t i"], points: Float[Array, "p i o"], dilation: int) -> Float[Array, "b u o"]:
    """Convolution of width 7 without padding, u = t - 6 * dilation; `points` is the kernel transformed by `prepare`."""
    batch, length, channels = x.shape
    outputs = length - (WIDTH - 1) * dilation
    blocks = -(-outputs // (OUTPUTS * dilation))
    needed = (OUTPUTS * blocks + WIDTH - 1) * dilation
    x = jnp.pad(x, ((0, 0), (0, needed - length), (0, 0))).reshape(batch, -1, dilation, channels)
    x = jax.lax.optimization_barrier(x)  # otherwise XLA would recompute the input for each of the values
    inputs = [x[:, i : i + OUTPUTS * (blocks - 1) + 1 : OUTPUTS] for i in range(OUTPUTS + WIDTH - 1)]
    values = [_combine(row, inputs).reshape(-1, channels) @ kernel for row, kernel in zip(INPUTS, points, strict=True)]
    found = [_combine(row, values).reshape(batch, blocks, 1, dilation, -1) for row in SUMS]
    return jnp.concatenate(found, axis=2).reshape(batch, OUTPUTS * blocks * dilation, -1)[:, :outputs]


def dense_kernel(kernel: Any, stride: int) -> Any:
    """The kernel (2 * stride, in, out) of a transposed convolution as one matrix (2 * in, stride * out), in first.

    Accepts and returns NumPy or JAX arrays.
    """
    _, inputs, outputs = kernel.shape
    halves = kernel.reshape(2, stride, inputs, outputs)[::-1]  # the newer input is multiplied by the first half
    return halves.transpose(0, 2, 1, 3).reshape(2 * inputs, stride * outputs)


def _prepared(node: Any, name: str) -> Any:
    if isinstance(node, list):
        return [_prepared(child, name) for child in node]
    if not isinstance(node, dict):
        return node
    if "kernel" not in node:
        return {key: _prepared(child, key) for key, child in node.items()}
    width, inputs, outputs = node["kernel"].shape
    kernel = np.asarray(node["kernel"])
    if name == "up":
        return {"dense": jax.device_put(dense_kernel(kernel, width // 2)), "bias": node["bias"]}
    if name == "wide" and width == WIDTH and min(inputs, outputs) >= FEWEST_CHANNELS:
        points = KERNELS.astype(np.float32) @ kernel.reshape(WIDTH, -1)
        return {"points": jax.device_put(points.reshape(-1, inputs, outputs)), "bias": node["bias"]}
    return node


def _combine(weights: np.ndarray, arrays: Sequence[Array]) -> Array:
    terms = [
        array if weight == 1 else np.float32(weight) * array
        for weight, array in zip(weights, arrays, strict=True)
        if weight
    ]
    return sum(terms[1:], terms[0])


def _scheme(taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sums, kernels, inputs) such that sums @ ((kernels @ g) * (inputs @ x)) are OUTPUTS outputs of `taps` taps."""
    count = OUTPUTS + taps - 1
    points = np.array(_POINTS[: count - 1])

    def powers(size: int) -> np.ndarray:
        return np.vstack([points[:, None] ** np.arange(size), np.eye(size)[-1]])

    inputs = np.linalg.inv(powers(count)).T
    inputs[np.abs(inputs) < 1e-9] = 0
    # Powers of 2, to be exact, that keep the values near 1.
    scale = 2.0 ** np.round(np.log2(np.abs(inputs).max(axis=1, keepdims=True)))
    return powers(OUTPUTS).T, powers(taps) * scale, inputs / scale


def _both_parts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The joint schemes of the first 4 and the last 3 taps."""
    sums, kernels, inputs = zip(*(_scheme(taps) for taps in (4, 3)), strict=True)
    at = [(0, 0), (len(kernels[0]), 4)]  # first row and first tap of each
    points = sum(map(len, kernels))
    wide, reach = np.zeros((points, WIDTH)), np.zeros((points, OUTPUTS + WIDTH - 1))
    for (row, tap), part, part_inputs in zip(at, kernels, inputs, strict=True):
        wide[row : row + len(part), tap : tap + part.shape[1]] = part
        reach[row : row + len(part), tap : tap + len(part)] = part_inputs
    return np.hstack(sums), wide, reach


SUMS, KERNELS, INPUTS = _both_parts()
