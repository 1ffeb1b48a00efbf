"""DAC's bottleneck: residual vector quantization (arXiv 2107.03312) with factorized, l2-normalised codes (2110.04627).

Each stage projects the residual of the previous stages to a few channels, selects the codebook vector with the nearest
direction, and subtracts that vector, projected back. Layout of a stage: {"in": 1x1 convolution, "codebook": (size,
channels), "out": 1x1 convolution}; params["bottleneck"]["quantizers"] is the list of stages.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from echotts.codec.layers import Params

_TINY = 1e-12  # lower bound of the norm, as in torch.nn.functional.normalize


class Quantized(NamedTuple):
    """Quantizer outputs for training. The losses are means over the batch, summed over the stages."""

    embeddings: Float[Array, "b t d"]
    codes: Int[Array, "b q t"]
    commitment_loss: Float[Array, ""]
    codebook_loss: Float[Array, ""]


def quantize(
    params: Params, features: Float[Array, "b t d"], n_quantizers: int | None = None
) -> tuple[Float[Array, "b t d"], Int[Array, "b q t"]]:
    """Sum of the quantized vectors, and the codes, from the first `n_quantizers` codebooks (default: all)."""

    def stage(carry: tuple[Array, Array], stage_params: Params) -> tuple[tuple[Array, Array], Array]:
        total, residual = carry
        codes = nearest(_project(residual, stage_params["in"]), stage_params["codebook"])
        quantized = _project(stage_params["codebook"][codes], stage_params["out"])
        return (total + quantized, residual - quantized), codes

    start = (jnp.zeros_like(features), features)
    (total, _), codes = jax.lax.scan(stage, start, _stages(params, n_quantizers))
    return total, jnp.moveaxis(codes, 0, 1)


def embed(params: Params, codes: Int[Array, "b q t"]) -> Float[Array, "b t d"]:
    """Sum of the codebook vectors that the codes select; q may be less than the number of codebooks."""

    def stage(total: Array, inputs: tuple[Params, Array]) -> tuple[Array, None]:
        stage_params, stage_codes = inputs
        return total + _project(stage_params["codebook"][stage_codes], stage_params["out"]), None

    stages = _stages(params, codes.shape[1])
    width = stages["out"]["bias"].shape[-1]
    start = jnp.zeros((codes.shape[0], codes.shape[2], width))
    return jax.lax.scan(stage, start, (stages, jnp.moveaxis(codes, 1, 0)))[0]


def quantize_for_training(
    params: Params, features: Float[Array, "b t d"], key: PRNGKeyArray, dropout: float = 0.5
) -> Quantized:
    """Quantizes with straight-through gradients and quantizer dropout; returns the losses of DAC's training as well.

    The first `dropout` fraction of the batch uses only the first n codebooks, with n uniform in 1..n_codebooks.
    The commitment loss pulls features towards their codebook vectors, the codebook loss pulls vectors towards the
    features. Both are mean squares over channels and time in the codebook's space, without the stages a row drops.
    """
    stages = _stages(params, None)
    batch, count = features.shape[0], stages["codebook"].shape[0]
    kept = jnp.where(jnp.arange(batch) < int(batch * dropout), jax.random.randint(key, (batch,), 1, count + 1), count)

    def stage(carry: tuple[Array, Array], inputs: tuple[Params, Array]) -> tuple[tuple[Array, Array], tuple]:
        total, residual = carry
        stage_params, number = inputs
        projected = _project(residual, stage_params["in"])
        codes = nearest(projected, stage_params["codebook"])
        vectors = stage_params["codebook"][codes]
        straight = projected + jax.lax.stop_gradient(vectors - projected)
        quantized = _project(straight, stage_params["out"])
        mask = (number < kept).astype(features.dtype)
        commitment = jnp.mean((projected - jax.lax.stop_gradient(vectors)) ** 2, axis=(1, 2))
        codebook = jnp.mean((vectors - jax.lax.stop_gradient(projected)) ** 2, axis=(1, 2))
        losses = ((commitment * mask).mean(), (codebook * mask).mean())
        return (total + quantized * mask[:, None, None], residual - quantized), (codes, *losses)

    start = (jnp.zeros_like(features), features)
    (total, _), (codes, commitment, codebook) = jax.lax.scan(stage, start, (stages, jnp.arange(count)))
    return Quantized(total, jnp.moveaxis(codes, 0, 1), commitment.sum(), codebook.sum())


def nearest(projected: Float[Array, "b t k"], codebook: Float[Array, "s k"]) -> Int[Array, "b t"]:
    """Index of the codebook vector with the nearest direction; the first one on a tie."""
    return jnp.argmax(_unit(projected) @ _unit(codebook).T, axis=-1)


def _unit(x: Float[Array, "*s k"]) -> Float[Array, "*s k"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), _TINY)


def _project(x: Float[Array, "b t i"], params: Params) -> Float[Array, "b t o"]:
    return x @ params["kernel"][0] + params["bias"]


def _stages(params: Params, count: int | None) -> Params:
    """The first `count` stages, stacked for a scan."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["bottleneck"]["quantizers"][:count])
