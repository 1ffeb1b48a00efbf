"""Chooses the attention for a platform: Pallas splash on TPU, cuDNN on GPU, head by head on CPU, else XLA.

All have the semantics of `attention.attend`: masked keys have no weight, and a row without visible keys gives finite,
unused numbers. Fused kernels never store the scores, t x s numbers per head.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Bool, Float

from echotts.config import ModelConfig
from echotts.model.attention import HeadAttention, attend, attend_by_head, with_heads
from echotts.model.kernel import LANES, gated_attention

BLOCKS = (512, 384, 256, 128)  # positions; larger blocks are faster unless they need more padding
CUDNN_HEAD_LIMIT = 128


def choose_attention(platform: str, config: ModelConfig) -> HeadAttention:
    """The attention of a model on "tpu", "gpu" or "cpu"; `config.attention` "xla", or "splash" on a TPU, overrides.

    The package's kernel needs heads of 128 channels, splash multiples of 128, cuDNN bfloat16 and at most 128 channels.
    """
    heads = {config.head_dim, config.text.head_dim, config.speaker.head_dim}
    if config.attention == "xla":
        return with_heads(attend)
    if platform == "tpu" and config.attention == "auto" and heads == {LANES}:
        return gated_attention
    if platform == "tpu" and not any(dim % LANES for dim in heads):
        return with_heads(splash)
    if platform in ("gpu", "cuda") and config.compute_dtype == "bfloat16" and max(heads) <= CUDNN_HEAD_LIMIT:
        return with_heads(cudnn)
    return with_heads(attend_by_head if platform == "cpu" else attend)


def frame_tile(platform: str) -> int:
    """The multiple to which a model pads its frames on "tpu", "gpu" or "cpu"."""
    return LANES if platform == "tpu" else 1


def splash(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h d"],
    visible: Bool[Array, "b s"] | None = None,
    *,
    causal: bool = False,
    interpret: bool = False,
) -> Float[Array, "b t h d"]:
    """Flash attention on TPU, forward and backward. Pads lengths to the kernel's blocks.

    The kernel runs on one device: under a mesh it is wrapped (training/mesh.py). `interpret` runs it on a CPU, for
    tests.
    """
    queries, keys = q.shape[1], k.shape[1]
    block_q, block_k = _block(queries), _block(keys)
    if visible is None:
        visible = jnp.ones(k.shape[:2], bool)
    # a fully masked row would divide by zero: unmask it
    visible = visible | ~visible.any(axis=1, keepdims=True)
    segments = splash_attention.SegmentIds(
        q=jnp.ones((len(q), queries + -queries % block_q), jnp.int32),
        kv=_pad(visible.astype(jnp.int32), block_k),
    )
    kernel = _splash_kernel(q.shape[2], segments.q.shape[1], segments.kv.shape[1], block_q, block_k, causal, interpret)
    scaled = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)  # the kernel does not scale
    parts = (_pad(scaled, block_q), _pad(k, block_k), _pad(v, block_k))
    out = jax.vmap(kernel)(*(jnp.swapaxes(part, 1, 2) for part in parts), segments)
    return jnp.swapaxes(out, 1, 2)[:, :queries]


def cudnn(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h d"],
    visible: Bool[Array, "b s"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "b t h d"]:
    """Flash attention on an NVIDIA GPU, forward and backward, in bfloat16."""
    mask = None
    if visible is not None:
        visible = visible | ~visible.any(axis=1, keepdims=True)
        mask = visible[:, None, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="cudnn")


def _splash_kernel(
    heads: int, queries: int, keys: int, block_q: int, block_k: int, causal: bool, interpret: bool
) -> Any:
    with jax.ensure_compile_time_eval():  # the kernel's mask tables must be constants even while tracing
        shape = (queries, keys)
        mask = splash_attention.CausalMask(shape) if causal else splash_attention.FullMask(shape)
        return splash_attention.make_splash_mha(
            mask=splash_attention.MultiHeadMask([mask] * heads),
            block_sizes=splash_attention.BlockSizes(
                block_q=block_q,
                block_kv=block_k,
                block_q_dkv=block_q,
                block_kv_dkv=block_k,
                block_q_dq=block_q,
                block_kv_dq=block_k,
            ),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )


@functools.cache
def _block(positions: int) -> int:
    """The largest block that needs no more padding than the smallest one."""
    padded = positions + -positions % LANES
    return next(block for block in BLOCKS if padded % block == 0)


def _pad(x: Array, block: int) -> Array:
    """Pads axis 1 with zeros to a multiple of the block."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % block), *[(0, 0)] * (x.ndim - 2)])
