"""The two condition encoders: text (bidirectional, masked) and speaker (causal over patches of frames)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from echotts.config import EncoderConfig, ModelConfig
from echotts.model import layers
from echotts.model.attention import HeadAttention, SelfAttention, plain_attention
from echotts.model.layers import Embedding, Linear, RMSNorm, SwiGLU


class EncoderBlock(nnx.Module):
    """Pre-norm self-attention, then SwiGLU, with plain residuals."""

    def __init__(self, config: EncoderConfig, *, eps: float, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, eps=eps)
        self.attention = SelfAttention(config.width, config.heads, eps=eps, rngs=rngs)
        self.mlp_norm = RMSNorm(config.width, eps=eps)
        self.mlp = SwiGLU(config.width, config.mlp_width, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b s e"],
        visible: Bool[Array, "b s"] | None,
        rope: Float[Array, "2 s d"],
        attend: HeadAttention,
        *,
        causal: bool,
    ) -> Float[Array, "b s e"]:
        x = x + self.attention(self.attention_norm(x), visible, rope, attend, causal=causal)
        return x + self.mlp(self.mlp_norm(x))


class _Encoder(nnx.Module):
    """What both encoders have: the hooks of BlockDiT, and stacked blocks."""

    def __init__(
        self,
        config: ModelConfig,
        own: EncoderConfig,
        rngs: nnx.Rngs,
        constrain: layers.Constrain = layers.identity,
        gather: layers.Gather = layers.identity,
        attend: HeadAttention = plain_attention,
    ):
        self.config = config
        self.constrain = constrain
        self.gather = gather
        self.attend = attend
        self.blocks = layers.stack(lambda rngs: EncoderBlock(own, eps=config.norm_eps, rngs=rngs), own.depth, rngs)


class TextEncoder(_Encoder):
    """Token ids to text states. A row without visible tokens gives finite states, which the decoder masks."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, **hooks: Any):
        self.text_embedding = Embedding(config.vocabulary, config.text.width, rngs=rngs)
        super().__init__(config, config.text, rngs, **hooks)

    def __call__(self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"]) -> Float[Array, "b n e"]:
        x = self.text_embedding(ids, jnp.dtype(self.config.compute_dtype))
        return run_encoder(self, self.config.text, x, mask)


class SpeakerEncoder(_Encoder):
    """Reference latents, split into patches of frames, to speaker states.

    Causal, without a padding mask: padding is at the end, so causality hides it from valid patches.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, **hooks: Any):
        self.in_proj = Linear(config.patch * config.latent_channels, config.speaker.width, bias=True, rngs=rngs)
        super().__init__(config, config.speaker, rngs, **hooks)

    def __call__(self, latent: Float[Array, "b m c"]) -> Float[Array, "b p e"]:
        rows, frames, channels = latent.shape
        patch = self.config.patch
        if frames % patch:
            raise ValueError(f"speaker latent has {frames} frames: pad it to a multiple of the patch size {patch}")
        patches = latent.astype(self.config.compute_dtype).reshape(rows, frames // patch, patch * channels)
        return run_encoder(self, self.config.speaker, self.in_proj(patches), causal=True)


def run_encoder(
    encoder: _Encoder,
    sizes: EncoderConfig,
    x: Float[Array, "b s e"],
    visible: Bool[Array, "b s"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "b s e"]:
    """Scans the stacked blocks of an encoder over x; RoPE positions start at the first entry."""
    rope = layers.rope_table(x.shape[1], sizes.head_dim, encoder.config.rope_theta)
    constrain, attend = encoder.constrain, encoder.attend

    def step(block: EncoderBlock, x: Array, _: None) -> tuple[Array, None]:
        return constrain(block(x, visible, rope, attend, causal=causal)), None

    return layers.scan_layers(encoder.blocks, step, constrain(x), remat=encoder.config.remat, gather=encoder.gather)[0]
