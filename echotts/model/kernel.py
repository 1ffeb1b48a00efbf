"""Attention on a TPU as one Pallas kernel: from the projections to the input of `wo` without intermediates in memory.

Norms and RoPE of queries and keys, joining the key parts, the softmax and the output gate all happen in on-chip memory.
A head is a block of 128 columns of (b t w), so there is no transpose, no concatenation and no stored scores. With a
kernel for the softmax alone, XLA spends more time on the rest than on the layer's matrix products.
All keys of a row and head are held at once, so the softmax needs no running maximum.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from echotts.model.attention import MASKED_SCORE, HeadNorms
from echotts.model.layers import KEPT

LANES = 128  # a TPU register's width: heads have this many channels, and lengths are padded to multiples of it
BLOCKS = (768, 512, 384, 256)  # query block sizes, else LANES
SCORES = 1 << 19  # per block; 2 MiB in float32, and the backward pass holds several arrays of that size


@dataclass(frozen=True)
class Form:
    """Static parameters of a compiled kernel."""

    lengths: tuple[int, ...]  # of each key part; RoPE rotates the first part
    normed: tuple[bool, ...]  # parts whose keys are already normalised
    block: int  # queries per grid step
    eps: float
    causal: bool
    interpret: bool

    @property
    def keys(self) -> int:
        return sum(self.lengths)

    @property
    def starts(self) -> list[int]:
        """Offset of each part in the joined keys."""
        return [sum(self.lengths[:i]) for i in range(len(self.lengths))]


def gated_attention(
    q: Array,
    keys: Sequence[Array],
    values: Sequence[Array],
    gate: Array,
    norms: HeadNorms,
    rope: Array,
    visible: Array | None = None,
    *,
    normed: Sequence[bool],
    causal: bool = False,
    first_head: Any = 0,
    interpret: bool = False,
) -> Array:
    """`HeadAttention` (model/attention.py) for heads of 128 channels.

    The kernel runs on one device: under a mesh it is wrapped (training/mesh.py), and `first_head` is the index of its
    first head in the layer. `interpret` runs it on a CPU, for tests.
    """
    rows, queries, _ = q.shape
    if visible is None:
        visible = jnp.ones((rows, sum(part.shape[1] for part in keys)), bool)
    visible = visible | ~visible.any(axis=1, keepdims=True)  # a fully masked row would divide by zero
    ends = [sum(part.shape[1] for part in keys[: i + 1]) for i in range(len(keys) - 1)]
    seen = jnp.concatenate([_padded(mask) for mask in jnp.split(visible, ends, axis=1)], axis=1)
    parts = [_padded(part) for part in keys]
    lengths = tuple(part.shape[1] for part in parts)
    padded = queries + -queries % LANES
    block = next((b for b in BLOCKS if padded % b == 0 and b * sum(lengths) <= SCORES), LANES)
    form = Form(lengths, tuple(normed), block, norms.eps, causal, interpret)
    per_head = [x.astype(jnp.float32).reshape(-1, 1, LANES) for x in (norms.q_gain, norms.k_gain)]
    numbers = jnp.arange(len(per_head[0])) + first_head
    turned = jnp.broadcast_to((numbers < norms.turned).astype(jnp.float32)[:, None, None], per_head[0].shape)
    table = jnp.pad(rope, ((0, 0), (0, max(padded, lengths[0]) - rope.shape[1]), (0, 0)))
    hidden = jnp.where(seen, 0.0, MASKED_SCORE)[:, None]
    inputs = (_padded(q), _padded(gate), *parts, *map(_padded, values), *per_head, turned, table, hidden)
    out: Any = _attention(form, inputs)
    return out[:, :queries]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(form: Form, inputs: tuple[Array, ...]) -> Array:
    return _run(_forward, form, inputs, inputs[:1], 0)[0]


def _attention_forward(form: Form, inputs: tuple[Array, ...]) -> tuple[Array, tuple[tuple[Array, ...], Array]]:
    out = _run(_forward, form, inputs, inputs[:1], 0)[0]
    # as bits: JAX rounds floats saved by remat again, an extra pass over memory
    bits = lax.bitcast_convert_type(out, f"uint{8 * out.dtype.itemsize}")
    out = lax.bitcast_convert_type(checkpoint_name(bits, KEPT), out.dtype)
    return out, (inputs, out)


def _attention_backward(form: Form, kept: tuple[tuple[Array, ...], Array], gradient: Array) -> tuple[tuple[Array, ...]]:
    inputs, out = kept
    arrays = 2 + 2 * len(form.lengths)  # q, gate, keys, values
    found = _run(_backward, form, (*inputs, out, gradient), inputs[:arrays], 2)
    gains = [jnp.sum(rows, axis=0) for rows in found[arrays:]]
    return ((*found[:arrays], *gains, *map(jnp.zeros_like, inputs[arrays + 2 :])),)


_attention.defvjp(_attention_forward, _attention_backward)


def _run(kernel: Any, form: Form, inputs: Sequence[Array], like: Sequence[Array], gains: int) -> Sequence[Array]:
    """Runs a kernel over (rows, heads, query blocks). Outputs are like `like`, then gradients of gains per row."""
    rows, queries, width = inputs[0].shape
    heads = width // LANES
    of_queries = pl.BlockSpec((None, form.block, LANES), lambda b, h, i: (b, i, h))
    of_keys = [pl.BlockSpec((None, n, LANES), lambda b, h, i: (b, 0, h)) for n in form.lengths]
    of_head = pl.BlockSpec((None, 1, LANES), lambda b, h, i: (h, 0, 0))
    of_gain = pl.BlockSpec((None, None, 1, LANES), lambda b, h, i: (b, h, 0, 0))
    arrays = [of_queries, of_queries, *of_keys, *of_keys]
    table = pl.BlockSpec(inputs[len(arrays) + 3].shape, lambda b, h, i: (0, 0, 0))
    of_row = pl.BlockSpec((None, 1, form.keys), lambda b, h, i: (b, 0, 0))
    in_specs = [*arrays, of_head, of_head, of_head, table, of_row, of_queries, of_queries][: len(inputs)]
    gain_shape = jax.ShapeDtypeStruct((rows, heads, 1, LANES), jnp.float32)
    sums = [pltpu.VMEM((form.keys, LANES), jnp.float32)] * gains
    grid = (rows, heads, queries // form.block)
    products = 5 if gains else 2  # number of (queries x keys x channels) products, two operations each
    flops = products * 2 * rows * queries * form.keys * width
    return pl.pallas_call(
        functools.partial(kernel, form),
        grid=grid,
        in_specs=in_specs,
        out_specs=[*arrays[: len(like)], *[of_gain] * gains],
        out_shape=[*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like), *[gain_shape] * gains],
        scratch_shapes=[pltpu.VMEM((form.keys, LANES), inputs[0].dtype)] * 2 + sums,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=flops,
            transcendentals=rows * heads * queries * form.keys,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *like)),
        ),
        metadata={"flops": str(flops), "grid_steps": str(math.prod(grid))},  # for training/cost.py
        interpret=form.interpret,
        name=f"gated_attention{kernel.__name__}",
    )(*inputs)


def _forward(form: Form, *refs: Any) -> None:
    q, gate, keys, values, q_gain, k_gain, turn, table, hidden, (out, k_all, v_all) = _named(form, refs)
    angles = _angles(table, turn, pl.program_id(2) * form.block, form.block)
    _join(form, keys, values, k_gain, turn, table, k_all, v_all)
    turned = _turn(_norm(q[...], form.eps)[0] * q_gain[...], angles) * LANES**-0.5
    weights = _weights(form, turned.astype(k_all.dtype), k_all, hidden)
    attended = _dot(weights.astype(v_all.dtype), v_all[...], (1, 0))
    out[...] = (attended * jax.nn.sigmoid(gate[...].astype(jnp.float32))).astype(out.dtype)


def _backward(form: Form, *refs: Any) -> None:
    parts = len(form.lengths)
    q, gate, keys, values, q_gain, k_gain, turn, table, hidden, others = _named(form, refs)
    out, gradient, d_q, d_gate = others[:4]
    d_keys, d_values = others[4 : 4 + parts], others[4 + parts : 4 + 2 * parts]
    d_q_gain, d_k_gain, k_all, v_all, k_sum, v_sum = others[4 + 2 * parts :]
    dtype = v_all.dtype
    angles = _angles(table, turn, pl.program_id(2) * form.block, form.block)
    _join(form, keys, values, k_gain, turn, table, k_all, v_all)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        for sums in (k_sum, v_sum, d_q_gain, d_k_gain):
            sums[...] = jnp.zeros(sums.shape, sums.dtype)

    normed, inverse = _norm(q[...], form.eps)
    turned = (_turn(normed * q_gain[...], angles) * LANES**-0.5).astype(dtype)
    weights = _weights(form, turned, k_all, hidden)
    opened = jax.nn.sigmoid(gate[...].astype(jnp.float32))
    g = gradient[...].astype(jnp.float32)
    # out = attention result * gate: neither gradient needs the attention result alone
    g_out = g * out[...].astype(jnp.float32)
    d_gate[...] = (g_out * (1 - opened)).astype(d_gate.dtype)
    d_attended = g * opened
    d_weights = _dot(d_attended.astype(dtype), v_all[...], (1, 1))
    d_scores = (weights * (d_weights - jnp.sum(g_out, axis=-1, keepdims=True))).astype(dtype)
    v_sum[...] += _dot(weights.astype(dtype), d_attended.astype(dtype), (0, 0))
    k_sum[...] += _dot(d_scores, turned, (0, 0))
    d_turned = _turn(_dot(d_scores, k_all[...], (1, 0)) * LANES**-0.5, angles, back=True)
    d_q_gain[...] += jnp.sum(d_turned * normed, axis=0, keepdims=True)
    d_q[...] = _norm_back(d_turned * q_gain[...], normed, inverse).astype(d_q.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        for i, (start, length) in enumerate(zip(form.starts, form.lengths, strict=True)):
            d_values[i][...] = v_sum[pl.ds(start, length)].astype(dtype)
            d_key = k_sum[pl.ds(start, length)]
            if i == 0:
                d_key = _turn(d_key, _angles(table, turn, 0, length), back=True)
            if not form.normed[i]:
                normed, inverse = _norm(keys[i][...], form.eps)
                d_k_gain[...] += jnp.sum(d_key * normed, axis=0, keepdims=True)
                d_key = _norm_back(d_key * k_gain[...], normed, inverse)
            d_keys[i][...] = d_key.astype(dtype)


def _named(form: Form, refs: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = len(form.lengths)
    q, gate, *rest = refs
    return (q, gate, rest[:parts], rest[parts : 2 * parts], *rest[2 * parts : 2 * parts + 5], rest[2 * parts + 5 :])


def _join(form: Form, keys: Any, values: Any, gain: Any, turn: Any, table: Any, k_all: Any, v_all: Any) -> None:
    """Joins, normalises and rotates all keys of a row and head, and joins all values, once for all query blocks."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        for i, (start, length) in enumerate(zip(form.starts, form.lengths, strict=True)):
            v_all[pl.ds(start, length)] = values[i][...]
            key = keys[i][...].astype(jnp.float32)
            key = key if form.normed[i] else _norm(key, form.eps)[0] * gain[...]
            key = _turn(key, _angles(table, turn, 0, length)) if i == 0 else key
            k_all[pl.ds(start, length)] = key.astype(k_all.dtype)


def _weights(form: Form, q: Array, k_all: Any, hidden: Any) -> Array:
    scores = _dot(q, k_all[...], (1, 1)) + hidden[...]
    if form.causal:
        query = lax.broadcasted_iota(jnp.int32, scores.shape, 0) + pl.program_id(2) * form.block
        scores = jnp.where(query >= lax.broadcasted_iota(jnp.int32, scores.shape, 1), scores, MASKED_SCORE)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _norm(x: Array, eps: float) -> tuple[Array, Array]:
    """x / rms(x), float32, and 1 / rms(x)."""
    x = x.astype(jnp.float32)
    inverse = lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x * inverse, inverse


def _norm_back(gradient: Array, normed: Array, inverse: Array) -> Array:
    return inverse * (gradient - normed * jnp.mean(gradient * normed, axis=-1, keepdims=True))


def _angles(table: Any, turn: Any, start: Any, length: int) -> tuple[Array, Array]:
    """Factors of `_turn` at `length` positions: those of `rope_table`, or 1 and 0 for heads that are not rotated."""
    cos, sin = table[0, pl.ds(start, length)], table[1, pl.ds(start, length)]
    return 1 + turn[...] * (cos - 1), turn[...] * sin


def _turn(x: Array, angles: tuple[Array, Array], *, back: bool = False) -> Array:
    """RoPE (`layers.rotate`), or its inverse."""
    even = lax.broadcasted_iota(jnp.int32, x.shape, 1) % 2 == 0
    swapped = jnp.where(even, pltpu.roll(x, LANES - 1, 1), pltpu.roll(x, 1, 1))
    cos, sin = angles
    return x * cos - swapped * sin if back else x * cos + swapped * sin


def _dot(x: Array, y: Array, axes: tuple[int, int]) -> Array:
    """Product of x and y, contracted over one axis each, accumulated in float32."""
    return lax.dot_general(x, y, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)


def _padded(x: Array) -> Array:
    """Pads axis 1 with zeros to a multiple of LANES."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % LANES), *[(0, 0)] * (x.ndim - 2)])
