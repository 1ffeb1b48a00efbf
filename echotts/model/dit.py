"""BlockDiT, the velocity network: noisy latents, a time and two conditions in, a velocity out.

Architecture: docs/model.md; the closest public code is christophschuhmann/dacvae-echo.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from echotts.config import ModelConfig
from echotts.model import layers
from echotts.model.attention import ConditionKeysValues, HeadAttention, plain_attention
from echotts.model.block import BlockModulation, DecoderBlock, Modulation
from echotts.model.encoders import SpeakerEncoder, TextEncoder
from echotts.model.layers import Constrain, Linear, RMSNorm, timestep_embedding

SCALE_UNIT = 10.0  # brings guidance scales into the range of times


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditions:
    """Text and speaker keys and values for the decoder, computed once per utterance.

    A dropped condition has an all-False mask; its keys and values are unchanged. Fields are arrays (or what a tree map
    replaces them with): normalised keys, and values, (l, b, n, w) for text and (l, b, p, w) for speaker patches.
    """

    text_keys: Any
    text_values: Any
    speaker_keys: Any
    speaker_values: Any
    text_mask: Any  # (b, n) bool
    speaker_mask: Any  # (b, p) bool

    @property
    def keys_values(self) -> ConditionKeysValues:
        """The per-layer part, layer axis first."""
        return ConditionKeysValues(self.text_keys, self.text_values, self.speaker_keys, self.speaker_values)


class StudentInput(nnx.Module):
    """A number from 0 to 1 as an addition to the time embedding, which is zero before training."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.timestep_width = config.timestep_width
        self.cond_dense_0 = Linear(config.timestep_width, config.width, rngs=rngs)
        self.cond_dense_1 = Linear(config.width, config.width, zero=True, rngs=rngs)

    def __call__(self, number: Float[Array, " b"], dtype: Any) -> Float[Array, "b w"]:
        embedding = timestep_embedding(number, self.timestep_width).astype(dtype)
        return self.cond_dense_1(jax.nn.silu(self.cond_dense_0(embedding)))


class BlockDiT(nnx.Module):
    """The velocity network. Layers are stacked along a first axis and scanned, so that one block is compiled.

    `constrain` is applied to activations at block boundaries and `gather` to the parameters of each block, as hooks for
    sharding. `attend` is the attention of every layer (model/fused.py). Frames are padded to a multiple of
    `frame_tile`, and the padding is masked: on a TPU, 750 frames are not a whole number of tiles, and each reshape
    would copy. With an `adapter_rank`, attention and MLP of the decoder have low-rank adapters (model/adapters.py). A
    `student` (model/student.py) also takes the length of a step and a guidance scale: it returns average velocities.
    A fresh model returns zeros (its output projection is initialised to zero).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        constrain: Constrain = layers.identity,
        gather: layers.Gather = layers.identity,
        attend: HeadAttention = plain_attention,
        frame_tile: int = 1,
        adapter_rank: int = 0,
        student: bool = False,
    ):
        width, eps = config.width, config.norm_eps
        self.config = config
        self.constrain = constrain
        self.gather = gather
        self.attend = attend
        self.frame_tile = frame_tile
        self.text_encoder = TextEncoder(config, rngs=rngs, constrain=constrain, gather=gather, attend=attend)
        self.text_norm = RMSNorm(config.text.width, eps=eps)
        self.speaker_encoder = SpeakerEncoder(config, rngs=rngs, constrain=constrain, gather=gather, attend=attend)
        self.speaker_norm = RMSNorm(config.speaker.width, eps=eps)
        self.cond_dense_0 = Linear(config.timestep_width, width, rngs=rngs)
        self.cond_dense_1 = Linear(width, width, rngs=rngs)
        self.cond_dense_global_shift = Linear(width, width, rngs=rngs)
        self.cond_dense_global_scale = Linear(width, width, rngs=rngs)
        self.cond_dense_global_gate = Linear(width, width, rngs=rngs)
        self.in_proj = Linear(config.latent_channels, width, bias=True, rngs=rngs)
        self.blocks = layers.stack(lambda rngs: DecoderBlock(config, rngs=rngs), config.depth, rngs)
        self.norm = RMSNorm(width, eps=eps)
        self.out_proj = Linear(width, config.latent_channels, bias=True, zero=True, rngs=rngs)
        self.length_input = StudentInput(config, rngs=rngs) if student else None
        self.scale_input = StudentInput(config, rngs=rngs) if student else None
        if adapter_rank:
            layers.adapt(self.blocks.attention, adapter_rank, rngs)
            layers.adapt(self.blocks.mlp, adapter_rank, rngs)

    def __call__(
        self,
        x: Float[Array, "b t c"],
        t: Float[Array, "#b"],
        text_ids: Int[Array, "b n"],
        text_mask: Bool[Array, "b n"],
        speaker_latent: Float[Array, "b m c"],
        speaker_mask: Bool[Array, "b m"],
        length: Float[Array, "#b"] | None = None,
        scale: Float[Array, "#b"] | None = None,
    ) -> Float[Array, "b t c"]:
        """The velocity at time t (0 = data, 1 = noise), float32. Masks are True for valid tokens and frames.

        Of a student it is the average from t to t - length, guided with this scale. Condition keys are computed inside
        each layer, so that remat discards them too (training).
        """
        time = self.embed_time(t, length, scale)
        return self._forward(x, time, text_ids, text_mask, speaker_latent, speaker_mask, self.config.depth)[0]

    def with_alignment(
        self,
        x: Float[Array, "b t c"],
        t: Float[Array, "#b"],
        text_ids: Int[Array, "b n"],
        text_mask: Bool[Array, "b n"],
        speaker_latent: Float[Array, "b m c"],
        speaker_mask: Bool[Array, "b m"],
    ) -> tuple[Float[Array, "b t c"], Float[Array, "b t n"]]:
        """The velocity, and the scores of the middle layer's frames for the text, averaged over its heads, float32."""
        middle = self.config.depth // 2
        return self._forward(x, self.embed_time(t), text_ids, text_mask, speaker_latent, speaker_mask, middle)

    def _forward(
        self,
        x: Array,
        time: Array,
        text_ids: Array,
        text_mask: Array,
        speaker_latent: Array,
        speaker_mask: Array,
        at: int,
    ) -> tuple[Array, Any]:
        """The velocity, and the scores of layer `at`; None if there is no such layer."""
        text_state = self.encode_text(text_ids, text_mask)
        speaker_state = self.encode_speaker(speaker_latent)
        frames = x.shape[1]
        x = self._in_tiles(x)
        visible = _visible_keys(x, text_mask, self.patch_mask(speaker_mask), frames)
        common = self.modulation(time)
        rope = self._rope(x)

        def step(block: DecoderBlock, x: Array, _: None) -> tuple[Array, None]:
            conditions = block.attention.project_conditions(text_state, speaker_state)
            modulation = block.modulate(common)
            return self.constrain(block(x, modulation, conditions, visible, rope, self.attend, normed=False)), None

        def through(blocks: nnx.Module, hidden: Array) -> Array:
            return layers.scan_layers(blocks, step, hidden, remat=self.config.remat, gather=self.gather)[0]

        hidden = self.embed_latent(x)
        if at == self.config.depth:
            return self.read_out(through(self.blocks, hidden))[:, :frames], None
        first, rest = layers.cut(self.blocks, at)
        hidden = through(first, hidden)
        block = layers.first_of(rest, self.gather)
        y = block.attn_adaln(hidden, block.modulate(common).attention)
        scores = block.attention.text_scores(y, text_state, rope)
        return self.read_out(through(rest, hidden))[:, :frames], scores[:, :frames]

    def encode_conditions(
        self,
        text_ids: Int[Array, "b n"],
        text_mask: Bool[Array, "b n"],
        speaker_latent: Float[Array, "b m c"],
        speaker_mask: Bool[Array, "b m"],
    ) -> Conditions:
        """The states of both encoders as every layer's keys and values, for `velocity` at any x and t."""
        text_state = self.encode_text(text_ids, text_mask)
        speaker_state = self.encode_speaker(speaker_latent)

        def step(block: DecoderBlock, carry: None, _: None) -> tuple[None, ConditionKeysValues]:
            projected = block.attention.project_conditions(text_state, speaker_state)
            return carry, block.attention.norm_keys(projected)

        _, stacked = layers.scan_layers(self.blocks, step, None, remat="none", gather=self.gather)
        return Conditions(*stacked, text_mask=text_mask, speaker_mask=self.patch_mask(speaker_mask))

    def modulate(
        self, t: Float[Array, " s"], length: Float[Array, " s"] | None = None, scale: Float[Array, " s"] | None = None
    ) -> BlockModulation:
        """Every block's modulation for each time, for `velocity`: leaves (l, s, 1, w)."""
        common = self.modulation(self.embed_time(t, length, scale))

        def step(block: DecoderBlock, carry: None, _: None) -> tuple[None, BlockModulation]:
            return carry, block.modulate(common)

        return layers.scan_layers(self.blocks, step, None, remat="none", gather=self.gather)[1]

    def velocity(
        self, x: Float[Array, "b t c"], modulation: BlockModulation, conditions: Conditions
    ) -> Float[Array, "b t c"]:
        """The velocity at x, float32, from modulation (one time, or one per row) and encoded conditions.

        The conditions may have fewer rows than x: then the last rows of x are unconditional (as with all-False masks).
        """
        frames = x.shape[1]
        x = self._in_tiles(x)
        visible = _visible_keys(x, conditions.text_mask, conditions.speaker_mask, frames)
        own = None if x.shape[1] == frames else jnp.broadcast_to(visible[:1, : x.shape[1]], x.shape[:2])
        rope = self._rope(x)

        def step(
            block: DecoderBlock, x: Array, layer: tuple[BlockModulation, ConditionKeysValues]
        ) -> tuple[Array, None]:
            return self.constrain(block(x, *layer, visible, rope, self.attend, normed=True, own=own)), None

        layers_own = (modulation, conditions.keys_values)
        hidden, _ = layers.scan_layers(
            self.blocks, step, self.embed_latent(x), layers_own, remat=self.config.remat, gather=self.gather
        )
        return self.read_out(hidden)[:, :frames]

    def encode_text(self, text_ids: Int[Array, "b n"], text_mask: Bool[Array, "b n"]) -> Float[Array, "b n e"]:
        """Normalised text states."""
        return self.text_norm(self.text_encoder(text_ids, text_mask))

    def encode_speaker(self, speaker_latent: Float[Array, "b m c"]) -> Float[Array, "b p e"]:
        """Normalised speaker states, one per patch; the number of frames must be a multiple of the patch size."""
        return self.speaker_norm(self.speaker_encoder(speaker_latent))

    def patch_mask(self, speaker_mask: Bool[Array, "b m"]) -> Bool[Array, "b p"]:
        """A patch is visible if its first frame is."""
        return speaker_mask[:, :: self.config.patch]

    def embed_time(
        self, t: Float[Array, " b"], length: Float[Array, " b"] | None = None, scale: Float[Array, " b"] | None = None
    ) -> Float[Array, "b w"]:
        """The time embedding, input of the shift, scale and gate heads; of a student with its two other inputs."""
        dtype = self.config.compute_dtype
        embedding = timestep_embedding(t, self.config.timestep_width).astype(dtype)
        time = self.cond_dense_1(jax.nn.silu(self.cond_dense_0(embedding)))
        if self.length_input is None or self.scale_input is None:
            return time
        assert length is not None  # callers of a student give both
        assert scale is not None
        return time + self.length_input(length, dtype) + self.scale_input(scale / SCALE_UNIT, dtype)

    def modulation(self, time: Float[Array, "b w"]) -> Modulation:
        """The shift, scale and gate shared by all blocks."""
        active = jax.nn.silu(time)[:, None]
        return Modulation(
            shift=self.cond_dense_global_shift(active),
            scale=self.cond_dense_global_scale(active),
            gate=self.cond_dense_global_gate(active),
        )

    def embed_latent(self, x: Float[Array, "b t c"]) -> Float[Array, "b t w"]:
        """Projects latents to the decoder's width and compute dtype."""
        return self.constrain(self.in_proj(x.astype(self.config.compute_dtype)))

    def read_out(self, hidden: Float[Array, "b t w"]) -> Float[Array, "b t c"]:
        """Final norm and output projection, in float32."""
        return self.out_proj(self.norm(hidden.astype(jnp.float32)))

    def _in_tiles(self, x: Float[Array, "b t c"]) -> Float[Array, "b s c"]:
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % self.frame_tile), (0, 0)))

    def _rope(self, x: Float[Array, "b t c"]) -> Float[Array, "2 t d"]:
        return layers.rope_table(x.shape[1], self.config.head_dim, self.config.rope_theta)


def _visible_keys(
    x: Float[Array, "b t c"], text_mask: Bool[Array, "r n"], patch_mask: Bool[Array, "r p"], frames: int
) -> Bool[Array, "r s"]:
    """Visible keys of [latents, text, speaker]. All latent frames are visible, including padding in the batch."""
    latent_mask = jnp.broadcast_to(jnp.arange(x.shape[1]) < frames, (len(text_mask), x.shape[1]))
    return jnp.concatenate([latent_mask, text_mask, patch_mask], axis=1)
