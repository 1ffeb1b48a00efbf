"""Speaking as programs for a device that need not be here, for `echotts plan --what speak`: nothing runs."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from echotts.codec.chunking import lower_decode_window
from echotts.codec.codec import ACCELERATOR_FRAMES
from echotts.codec.dacvae import CodecConfig
from echotts.config import FRAME_RATE_HZ, ModelConfig
from echotts.flow import sampling
from echotts.model.fused import choose_attention
from echotts.model.parameters import abstract

SECONDS = 15.0
TOKENS = 256
REFERENCE_FRAMES = 256  # about 10 s


def lower_sample(config: ModelConfig, device: Any, sampler: sampling.SamplerConfig) -> dict[str, Any]:
    """Both programs that make the latents of SECONDS of speech, one utterance: the encoders, and the solver's loop."""
    place = SingleDeviceSharding(device)
    attend = choose_attention(device.platform, config)
    model = _placed(abstract(dataclasses.replace(config, remat="none"), attend=attend), place)
    frames = round(SECONDS * FRAME_RATE_HZ)
    speaker = (1, REFERENCE_FRAMES)
    inputs = _placed(
        (
            jax.ShapeDtypeStruct((1, TOKENS), jnp.int32),
            jax.ShapeDtypeStruct((1, TOKENS), jnp.bool_),
            jax.ShapeDtypeStruct((*speaker, config.latent_channels), jnp.float32),
            jax.ShapeDtypeStruct(speaker, jnp.bool_),
        ),
        place,
    )
    conditions = _placed(jax.eval_shape(sampling.encode_conditions, model, *inputs), place)
    noise = jax.ShapeDtypeStruct((1, frames, config.latent_channels), jnp.float32, sharding=place)
    return {
        "conditions": sampling.encode_conditions.lower(model, *inputs),
        "sampling": sampling.lower_sample(model, conditions, noise, sampler),
    }


def lower_decode(config: CodecConfig, device: Any) -> tuple[Any, int]:
    """The program that decodes one window of latents, and how many windows SECONDS of speech take."""
    frames = round(SECONDS * FRAME_RATE_HZ)
    lowered, delay = lower_decode_window(config, ACCELERATOR_FRAMES, SingleDeviceSharding(device))
    hop = config.hop_length
    return lowered, math.ceil((frames * hop + delay) / (ACCELERATOR_FRAMES * hop))


def _placed(tree: Any, place: SingleDeviceSharding) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)
