"""The duration predictor: how many latent frames a text takes in a voice, from the states of the model's encoders.

frames = sum over tokens of softplus(w2 SiLU(w1 [text state, mean speaker state] + b1) + b2): every token takes time, so
that longer texts of any length take longer. It is trained beside frozen encoders (training/tuning.py).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from echotts.config import ModelConfig
from echotts.model.dit import BlockDiT
from echotts.model.parameters import Params, flatten

DURATION = "duration"  # its part in a tree of parameters, and the prefix of its tensors in files
HIDDEN = 64


def create_duration(config: ModelConfig, key: Key[Array, ""]) -> Params:
    """A fresh predictor {"duration": ...}: 0.7 frames for every token."""
    text_key, speaker_key = jax.random.split(key)

    def kernel(key: Key[Array, ""], width: int) -> Float[Array, "i o"]:
        return width**-0.5 * jax.random.normal(key, (width, HIDDEN))

    return {
        DURATION: {
            "text": {"kernel": kernel(text_key, config.text.width), "bias": jnp.zeros(HIDDEN)},
            "speaker": {"kernel": kernel(speaker_key, config.speaker.width)},
            "frames": {"kernel": jnp.zeros((HIDDEN, 1)), "bias": jnp.zeros(1)},
        }
    }


def duration_shapes(config: ModelConfig) -> dict[str, Any]:
    """Path -> jax.ShapeDtypeStruct of every array of a predictor."""
    return flatten(jax.eval_shape(lambda: create_duration(config, jax.random.key(0))))


def predict_frames(
    params: Params,
    model: BlockDiT,
    text_ids: Int[Array, "b n"],
    text_mask: Bool[Array, "b n"],
    speaker_latent: Float[Array, "b m c"],
    speaker_mask: Bool[Array, "b m"],
) -> Float[Array, " b"]:
    """The duration of each row in latent frames, float32; `params` as made by `create_duration`."""
    parts = params[DURATION]
    text = model.encode_text(text_ids, text_mask).astype(jnp.float32)
    speaker = model.encode_speaker(speaker_latent).astype(jnp.float32)
    heard = model.patch_mask(speaker_mask)[..., None]
    voice = jnp.sum(jnp.where(heard, speaker, 0), axis=1) / jnp.maximum(jnp.sum(heard, axis=1), 1)
    common = voice @ parts["speaker"]["kernel"] + parts["text"]["bias"]
    hidden = jax.nn.silu(text @ parts["text"]["kernel"] + common[:, None])
    each = jax.nn.softplus(hidden @ parts["frames"]["kernel"] + parts["frames"]["bias"])[..., 0]
    return jnp.sum(jnp.where(text_mask, each, 0), axis=1)
