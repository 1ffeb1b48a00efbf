"""The same layers with less work, for CPUs, where matrix products are nearly all of a codec's time.

A convolution of width 7 is cut into 4 + 3 taps, and each part gives 4 outputs by Toom-Cook's scheme (S. Winograd,
A convolution of width 7 is cut into 4 + 3 taps, each part gives 4 outputs by the scheme of Toom and Cook (S. Winograd,
points. That takes 13 products of (t / 4, in) by (in, out) instead of 28. It rounds two and a half times as coarsely as
the sum of products does (rms 9e-7, not 4e-7, for 192 channels); one scheme for all 7 taps would be ten times as coarse.
Transposed convolutions find their kernel in the layout of the one matrix product that they are. Kernels are transformed
once, by `prepare`. Programs take longer to compile, which only wide networks give back.
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
FEWEST_CHANNELS = 64  # of a kernel that is worth it
_POINTS = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0)  # and infinity; the first so many


def prepare(part: Params) -> Params:
    """The tree of an encoder or decoder with its kernels as they are used here; what layers.py takes as well."""
    return _prepared(part, "")


def fast_conv(x: Float[Array, "b t i"], points: Float[Array, "p i o"], dilation: int) -> Float[Array, "b u o"]:
    """Convolution of width 7 without padding, u = t - 6 * dilation; `points` are the kernel's values (`prepare`)."""
    batch, length, channels = x.shape
    outputs = length - (WIDTH - 1) * dilation
    blocks = -(-outputs // (OUTPUTS * dilation))
    needed = (OUTPUTS * blocks + WIDTH - 1) * dilation
    x = jnp.pad(x, ((0, 0), (0, needed - length), (0, 0))).reshape(batch, -1, dilation, channels)
    x = jax.lax.optimization_barrier(x)  # or each of the values would compute what comes before it again
    inputs = [x[:, i : i + OUTPUTS * (blocks - 1) + 1 : OUTPUTS] for i in range(OUTPUTS + WIDTH - 1)]
    values = [_combine(row, inputs).reshape(-1, channels) @ kernel for row, kernel in zip(INPUTS, points, strict=True)]
    found = [_combine(row, values).reshape(batch, blocks, 1, dilation, -1) for row in SUMS]
    return jnp.concatenate(found, axis=2).reshape(batch, OUTPUTS * blocks * dilation, -1)[:, :outputs]


def dense_kernel(kernel: Any, stride: int) -> Any:
    """A transposed convolution's kernel (2 * stride, in, out) as one matrix (2 * in, stride * out), in first.

    Takes and gives NumPy or JAX arrays.
    """
    _, inputs, outputs = kernel.shape
    halves = kernel.reshape(2, stride, inputs, outputs)[::-1]  # the newer input meets the first half
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
    """(sums, kernels, inputs) such that sums @ ((kernels @ g) * (inputs @ x)) are OUTPUTS outputs of so many taps."""
    count = OUTPUTS + taps - 1
    points = np.array(_POINTS[: count - 1])

    def powers(size: int) -> np.ndarray:
        return np.vstack([points[:, None] ** np.arange(size), np.eye(size)[-1]])

    inputs = np.linalg.inv(powers(count)).T
    inputs[np.abs(inputs) < 1e-9] = 0
    scale = 2.0 ** np.round(np.log2(np.abs(inputs).max(axis=1, keepdims=True)))  # exact, and keeps values near 1
    return powers(OUTPUTS).T, powers(taps) * scale, inputs / scale


def _both_parts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The schemes of the first 4 and of the last 3 taps side by side."""
    sums, kernels, inputs = zip(*(_scheme(taps) for taps in (4, 3)), strict=True)
    at = [(0, 0), (len(kernels[0]), 4)]  # row and first tap of each
    points = sum(map(len, kernels))
    wide, reach = np.zeros((points, WIDTH)), np.zeros((points, OUTPUTS + WIDTH - 1))
    for (row, tap), part, part_inputs in zip(at, kernels, inputs, strict=True):
        wide[row : row + len(part), tap : tap + part.shape[1]] = part
        reach[row : row + len(part), tap : tap + len(part)] = part_inputs
    return np.hstack(sums), wide, reach


SUMS, KERNELS, INPUTS = _both_parts()
