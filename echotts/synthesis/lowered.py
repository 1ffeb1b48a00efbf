"""Synthesis as lowered programs for a device that may be absent, for `echotts plan --what speak`; nothing is run."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from echotts.codec.config import CodecConfig
from echotts.codec.windows import lower_decode_window
from echotts.config import FRAME_RATE_HZ, ModelConfig
from echotts.flow.options import SamplerConfig
from echotts.flow.sampling import encode_conditions, lower_sample
from echotts.model.fused import choose_attention, frame_tile
from echotts.model.parameters import abstract, computed_with, merge, split, zeros

SECONDS = 15.0
TOKENS = 256
REFERENCE_FRAMES = 256  # 10 s
WINDOW_FRAMES = 100  # per codec window on an accelerator


def lower_speaking(config: ModelConfig, codec: CodecConfig, sampler: SamplerConfig, device: Any) -> dict[str, Any]:
    """(program, runs) by name for SECONDS of speech of one utterance: conditions, the solver's loop, the codec."""
    place = SingleDeviceSharding(device)
    hooks = {"attend": choose_attention(device.platform, config), "frame_tile": frame_tile(device.platform)}
    graphdef, masters = split(abstract(dataclasses.replace(config, remat="none"), **hooks))
    params = jax.eval_shape(lambda: computed_with(zeros(masters), config.compute_dtype))
    model = merge(graphdef, _placed(params, place))
    frames = round(SECONDS * FRAME_RATE_HZ)
    shapes = (
        jax.ShapeDtypeStruct((1, TOKENS), jnp.int32),
        jax.ShapeDtypeStruct((1, TOKENS), jnp.bool_),
        jax.ShapeDtypeStruct((1, REFERENCE_FRAMES, config.latent_channels), jnp.float32),
        jax.ShapeDtypeStruct((1, REFERENCE_FRAMES), jnp.bool_),
    )
    inputs = _placed(shapes, place)
    conditions = _placed(jax.eval_shape(encode_conditions, model, *inputs), place)
    noise = jax.ShapeDtypeStruct((1, frames, config.latent_channels), jnp.float32, sharding=place)
    window, delay = lower_decode_window(codec, WINDOW_FRAMES, place)
    windows = math.ceil((frames * codec.hop_length + delay) / (WINDOW_FRAMES * codec.hop_length))
    return {
        "conditions": (encode_conditions.lower(model, *inputs), 1),
        "sampling": (lower_sample(model, conditions, noise, sampler), 1),
        "codec": (window, windows),
    }


def _placed(tree: Any, place: SingleDeviceSharding) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)
