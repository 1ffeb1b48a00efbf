"""Common layers of the networks, and functions that stack and scan layers.

Parameters are float32 masters; a layer computes in the dtype of its input, but norms and rotations in float32.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from echotts.config import RematName

INITIAL_STD = 0.02
KEPT = "kept"  # checkpoint name of values saved by remat "dots", besides results of products
GATHERED = "gathered weights"  # checkpoint name of results of `gather`, never saved by remat
ROPE_PAIR = 2  # adjacent channels (2i, 2i+1) are the real and imaginary part

kernel_init = jax.nn.initializers.truncated_normal(INITIAL_STD)
zero_init = jax.nn.initializers.zeros

Constrain: TypeAlias = Callable[[Array], Array]
Gather: TypeAlias = Callable[[Any], Any]  # stored parameters of one layer -> those used in computation
Block = TypeVar("Block", bound=nnx.Module)


def identity(x: Any) -> Any:
    """The default of both hooks: activations are not constrained, weights not gathered."""
    return x


class Linear(nnx.Module):
    """x @ kernel (+ x @ lora_a @ lora_b) (+ bias), in the dtype of x. The kernel is stored (in, out)."""

    def __init__(self, width_in: int, width_out: int, *, rngs: nnx.Rngs, bias: bool = False, zero: bool = False):
        self.kernel = nnx.Param((zero_init if zero else kernel_init)(rngs.params(), (width_in, width_out)))
        self.bias = nnx.Param(jnp.zeros((width_out,))) if bias else None
        self.lora_a: nnx.LoRAParam | None = None
        self.lora_b: nnx.LoRAParam | None = None

    def adapt(self, rank: int, rngs: nnx.Rngs) -> None:
        """Adds a low-rank adapter (arXiv 2106.09685), also to stacked layers; lora_b is zero, so nothing changes yet.

        `nnx.LoRA` is not used: it wraps a module, which renames its kernel, and has no axis of stacked layers.
        """
        *stacked, width_in, width_out = self.kernel.shape
        std = width_in**-0.5
        self.lora_a = nnx.data(nnx.LoRAParam(std * jax.random.normal(rngs.params(), (*stacked, width_in, rank))))
        self.lora_b = nnx.data(nnx.LoRAParam(jnp.zeros((*stacked, rank, width_out))))

    def __call__(self, x: Float[Array, "*rows i"]) -> Float[Array, "*rows o"]:
        # rows flattened to one axis: with two, XLA on CPU transposes for the weight gradient, which is slow
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ self.kernel[...].astype(x.dtype)
        if self.lora_a is not None and self.lora_b is not None:
            y = y + (rows @ self.lora_a[...].astype(x.dtype)) @ self.lora_b[...].astype(x.dtype)
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Embedding(nnx.Module):
    """A table of vectors, one per token id."""

    def __init__(self, vocabulary: int, width: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(kernel_init(rngs.params(), (vocabulary, width)))

    def __call__(self, ids: Array, dtype: Any) -> Array:
        return jnp.take(self.embedding[...], ids, axis=0).astype(dtype)


def rms_normalise(x: Float[Array, "*rows c"], eps: float) -> Float[Array, "*rows c"]:
    """x / sqrt(mean(x^2) + eps) over the last axis; the result is float32."""
    x = x.astype(jnp.float32)
    inverse = lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return x * checkpoint_name(inverse, KEPT)  # one number per row saves the backward pass a sum over x


class RMSNorm(nnx.Module):
    """RMS norm over the last axis with a gain of the given shape: computed in float32, returned in the dtype of x."""

    def __init__(self, *shape: int, eps: float):
        self.weight = nnx.Param(jnp.ones(shape))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows c"]) -> Float[Array, "*rows c"]:
        return (rms_normalise(x, self.eps) * self.weight[...].astype(jnp.float32)).astype(x.dtype)


class SwiGLU(nnx.Module):
    """w2(SiLU(w1 x) * (w3 x))."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.w1 = Linear(width, hidden, rngs=rngs)
        self.w2 = Linear(hidden, width, rngs=rngs)
        self.w3 = Linear(width, hidden, rngs=rngs)

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        return self.w2(jax.nn.silu(self.w1(x)) * self.w3(x))


def adapt(module: nnx.Module, rank: int, rngs: nnx.Rngs) -> None:
    """Adds an adapter to every Linear in a module (of stacked layers)."""
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, Linear):
            layer.adapt(rank, rngs)


def timestep_embedding(t: Float[Array, " b"], width: int) -> Float[Array, "b width"]:
    """[cos(t f), sin(t f)] with f_k = 1000 exp(-ln(10000) k / half); float32, t in [0, 1].

    The arguments reach 1000, so the frequencies are computed in float32 in exactly this order of operations.
    """
    half = width // 2
    k = np.arange(half, dtype=np.float32)
    frequencies = np.float32(1000) * np.exp(np.float32(-np.log(10000.0)) * k / np.float32(half))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rope_table(positions: int, head_dim: int, theta: float) -> Float[Array, "2 t d"]:
    """Factors of `rotate`, float32: the cosine of every channel's angle, and its sine with the applicable sign.

    Channels 2i and 2i + 1 share the angle position * theta^(-2i/head_dim).
    """
    exponents = np.arange(0, head_dim, ROPE_PAIR, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / np.float32(theta) ** exponents
    angles = jnp.repeat(jnp.arange(positions, dtype=jnp.float32)[:, None] * frequencies, ROPE_PAIR, axis=1)
    sign = np.tile(np.asarray([-1, 1], np.float32), head_dim // ROPE_PAIR)
    return jnp.stack([jnp.cos(angles), sign * jnp.sin(angles)])


def rotate(x: Float[Array, "b t h d"], rope: Float[Array, "2 t d"], heads: int) -> Float[Array, "b t h d"]:
    """Rotates each adjacent channel pair of the first `heads` heads by its angle, in float32; others are unchanged.

    (real, imaginary) becomes (real cos - imaginary sin, imaginary cos + real sin).
    """
    cos, sin = rope[:, :, None]
    turned = x.astype(jnp.float32) * cos + _swap_pairs(x).astype(jnp.float32) * sin
    if heads < x.shape[2]:
        turned = jnp.where((jnp.arange(x.shape[2]) < heads)[:, None], turned, x.astype(jnp.float32))
    return turned.astype(x.dtype)


def _swap_pairs(x: Float[Array, "b t h d"]) -> Float[Array, "b t h d"]:
    return x.reshape(*x.shape[:-1], -1, ROPE_PAIR)[..., ::-1].reshape(x.shape)


def stack(create: Callable[[nnx.Rngs], Block], depth: int, rngs: nnx.Rngs) -> Block:
    """One module with the parameters of `depth` independently initialised layers along a new first axis."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create_all(rngs: nnx.Rngs) -> Block:
        return create(rngs)

    return create_all(rngs)


def scan_layers(
    blocks: nnx.Module,
    apply: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    remat: RematName,
    gather: Gather = identity,
) -> tuple[Any, Any]:
    """Runs `apply(block, carry, x) -> (carry, y)` through stacked layers as one compiled body.

    `xs` and the returned ys have the layer axis first. `remat` selects what is saved of each layer for the backward
    pass: everything ("none"); results of products with weights, of the attention kernel and of sums in norms ("dots");
    or only the input ("full"). `gather` is applied to the parameters of each layer when it starts, and again in the
    backward pass.
    """
    graphdef, params = nnx.split(blocks)

    def body(carry: Any, layer: Any) -> tuple[Any, Any]:
        layer_params, x = layer
        return apply(nnx.merge(graphdef, gather(layer_params)), carry, x)

    return lax.scan(_rematerialised(body, remat, gather is not identity), carry, (params, xs))


def cut(blocks: Block, at: int) -> tuple[Block, Block]:
    """Stacked layers as two stacks, the first with `at` layers."""
    graphdef, params = nnx.split(blocks)
    parts = (jax.tree.map(lambda leaf, rows=rows: leaf[rows], params) for rows in (slice(at), slice(at, None)))
    first, rest = (nnx.merge(graphdef, part) for part in parts)
    return first, rest


def first_of(blocks: Block, gather: Gather = identity) -> Block:
    """The first layer of a stack, with `gather` applied as in `scan_layers`."""
    graphdef, params = nnx.split(blocks)
    return nnx.merge(graphdef, gather(jax.tree.map(lambda leaf: leaf[0], params)))


def _rematerialised(body: Callable[..., Any], remat: RematName, gathers: bool) -> Callable[..., Any]:
    # inside a scan the loop already prevents common subexpression elimination, so prevent_cse would only cost time
    policies = jax.checkpoint_policies
    if remat == "none":
        policy = policies.save_anything_except_these_names(GATHERED)
        return jax.checkpoint(body, policy=policy, prevent_cse=False) if gathers else body
    if remat == "dots":
        policy = policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(KEPT)
        )
        return jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.checkpoint(body, policy=policies.nothing_saveable, prevent_cse=False)
