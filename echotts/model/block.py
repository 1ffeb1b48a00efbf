"""The decoder block of BlockDiT: joint attention and SwiGLU, each modulated by time (low-rank AdaLN)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from echotts.config import ModelConfig
from echotts.model.attention import ConditionKeysValues, HeadAttention, JointAttention
from echotts.model.layers import Linear, SwiGLU, rms_normalise


class Modulation(NamedTuple):
    """Time modulation of a norm and its branch: three vectors (b, 1, w), or (1, 1, w) for a common time."""

    shift: Any
    scale: Any
    gate: Any


class BlockModulation(NamedTuple):
    """Time modulation of one block; stacked, with a layer axis first."""

    attention: Modulation
    mlp: Modulation


class LowRankAdaLN(nnx.Module):
    """RMS norm without gain, shifted and scaled by time: z = up(down(SiLU(g))) + g for shift, scale and gate."""

    def __init__(self, width: int, rank: int, *, eps: float, rngs: nnx.Rngs):
        self.eps = eps
        self.adaln_rank_shift = Linear(width, rank, rngs=rngs)
        self.adaln_rank_scale = Linear(width, rank, rngs=rngs)
        self.adaln_rank_gate = Linear(width, rank, rngs=rngs)
        self.shift = Linear(rank, width, bias=True, zero=True, rngs=rngs)
        self.scale = Linear(rank, width, bias=True, zero=True, rngs=rngs)
        self.gate = Linear(rank, width, bias=True, zero=True, rngs=rngs)

    def modulate(self, common: Modulation) -> Modulation:
        """This norm's modulation from the one shared by all blocks; applies tanh to the gate."""
        return Modulation(
            shift=self.shift(self.adaln_rank_shift(jax.nn.silu(common.shift))) + common.shift,
            scale=self.scale(self.adaln_rank_scale(jax.nn.silu(common.scale))) + common.scale,
            gate=jnp.tanh(self.gate(self.adaln_rank_gate(jax.nn.silu(common.gate))) + common.gate),
        )

    def __call__(self, x: Float[Array, "b t w"], own: Modulation) -> Float[Array, "b t w"]:
        """The normalised input, scaled and shifted, in the dtype of x."""
        y = rms_normalise(x, self.eps) * (1 + own.scale.astype(jnp.float32)) + own.shift.astype(jnp.float32)
        return y.astype(x.dtype)


class DecoderBlock(nnx.Module):
    """Joint attention, then SwiGLU, each with its own AdaLN and gate."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        eps = config.norm_eps
        self.attn_adaln = LowRankAdaLN(config.width, config.adaln_rank, eps=eps, rngs=rngs)
        self.attention = JointAttention(
            config.width, config.heads, config.text.width, config.speaker.width, eps=eps, rngs=rngs
        )
        self.mlp_adaln = LowRankAdaLN(config.width, config.adaln_rank, eps=eps, rngs=rngs)
        self.mlp = SwiGLU(config.width, config.mlp_width, rngs=rngs)

    def modulate(self, common: Modulation) -> BlockModulation:
        """This block's shifts, scales and gates, which depend only on time."""
        return BlockModulation(self.attn_adaln.modulate(common), self.mlp_adaln.modulate(common))

    def __call__(
        self,
        x: Float[Array, "b t w"],
        modulation: BlockModulation,
        conditions: ConditionKeysValues,
        visible: Bool[Array, "r s"],
        rope: Float[Array, "2 t d"],
        attend: HeadAttention,
        *,
        normed: bool,
        own: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b t w"]:
        """`normed`: condition keys are already normalised (`JointAttention.norm_keys`); `own`: see JointAttention."""
        y = self.attn_adaln(x, modulation.attention)
        heard = self.attention(y, conditions, visible, rope, attend, normed=normed, own=own)
        x = x + modulation.attention.gate * heard
        return x + modulation.mlp.gate * self.mlp(self.mlp_adaln(x, modulation.mlp))
