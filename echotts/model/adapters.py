"""Low-rank adapters (LoRA) beside the kernels of attention and MLP in the decoder, as trees of their own.

An adapter of a kernel W (in, out) is A (in, r) and B (r, out); the adapted kernel is W + A B. In training both products
are computed for the activations, so that neither A B nor its gradient is ever in memory; for inference they are merged.
The encoders and AdaLN are not adapted: what they compute is shared by all voices.
"""

from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from echotts.config import ModelConfig
from echotts.model.dit import BlockDiT
from echotts.model.parameters import Params, abstract, flatten, split, unflatten

KERNEL, DOWN, UP = "kernel", "lora_a", "lora_b"


def create_adapters(config: ModelConfig, rank: int, key: Key[Array, ""]) -> Params:
    """Fresh adapters, which change nothing: random A, B of zeros."""
    model = BlockDiT(config, rngs=nnx.Rngs(key), adapter_rank=rank)
    return _adapters_only(split(model)[1])


def adapter_shapes(config: ModelConfig, rank: int) -> dict[str, Any]:
    """Path -> jax.ShapeDtypeStruct of every array of an adapter."""
    return flatten(_adapters_only(split(abstract(config, adapter_rank=rank))[1]))


def with_adapters(params: Params, adapters: Params) -> Params:
    """The parameters of a model that has adapters, from those of its base and the adapters."""
    return unflatten(flatten(params) | flatten(adapters))


def merge_adapters(params: Params, adapters: Params) -> Params:
    """The base's parameters with adapted kernels W + A B, on the host; the others are the same arrays."""
    flat, parts = flatten(params), flatten(adapters)
    merged = dict(flat)
    for path in parts:
        owner, _, name = path.rpartition("/")
        if name == DOWN:
            kernel = np.asarray(flat[f"{owner}/{KERNEL}"], np.float32)
            down, up = (np.asarray(parts[f"{owner}/{part}"], np.float32) for part in (DOWN, UP))
            merged[f"{owner}/{KERNEL}"] = kernel + down @ up
    return unflatten(merged)


def _adapters_only(params: Params) -> Params:
    return unflatten({path: leaf for path, leaf in flatten(params).items() if path.endswith((DOWN, UP))})
