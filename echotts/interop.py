"""Checkpoints of other makers in and out, and the export file that inference loads.

Published BlockDiT checkpoints (LAION, dacvae-echo) are pickles of one dict: `params` (one nested dict of arrays, one
entry per layer), `opt_state`, `step`, `samples_seen`; a file may also hold the parameters alone. They are read by the
restricted reader of `echotts.pickles` only. Every size is read off the array shapes, never taken from a preset.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from echotts.config import EncoderConfig, ModelConfig
from echotts.model.parameters import Params, abstract, flatten, unflatten

# stacked prefix (ours) -> prefix of the numbered blocks (published)
STACKS = {
    "blocks/": "TransformerBlock_",
    "text_encoder/blocks/": "text_encoder/TextTransformerBlock_",
    "speaker_encoder/blocks/": "speaker_encoder/EncoderTransformerBlock_",
}


def published_path(path: str, layer: int | None = None) -> str:
    """The published name of one of our parameters; `layer` is needed where ours is stacked."""
    for ours, theirs in STACKS.items():
        if path.startswith(ours):
            path = f"{theirs}{layer}/{path.removeprefix(ours)}"
    owner, _, leaf = path.rpartition("/")
    parent, _, name = owner.rpartition("/")
    # attention projections pass through an inner module there
    return f"{owner}/Dense_0/{leaf}" if parent.endswith("attention") and name.startswith("w") else path


def params_to_published(params: Mapping[str, Any]) -> Params:
    """Our stacked parameters (or a tree of their shape, such as Adam's moments) as the published nested dict."""
    published = {}
    for path, leaf in flatten(params).items():
        for layer in _layers(path, leaf):
            published[published_path(path, layer)] = np.asarray(leaf if layer is None else leaf[layer])
    return unflatten(published)


def params_from_published(tree: Mapping[str, Any]) -> Params:
    """The published nested dict as our stacked parameters; dtypes stay. ValueError names what does not fit."""
    config = infer_config(tree)
    theirs = {path: np.asarray(leaf) for path, leaf in flatten(_unboxed(tree)).items()}
    params = {}
    for path, shape in expected_shapes(config).items():
        names = [published_path(path, layer) for layer in _layers(path, shape)]
        wanted = shape.shape if names == [published_path(path)] else shape.shape[1:]
        leaves = [_take(theirs, name, wanted) for name in names]
        params[path] = leaves[0] if wanted == shape.shape else np.stack(leaves)
    if theirs:
        raise ValueError(f"parameters: {len(theirs)} tensors belong to no BlockDiT, the first is {next(iter(theirs))}")
    return unflatten(params)


def expected_shapes(config: ModelConfig) -> dict[str, Any]:
    """Our path -> jax.ShapeDtypeStruct of every parameter of a model of this config."""
    from flax import nnx

    return flatten(nnx.to_pure_dict(nnx.state(abstract(config))))


def infer_config(tree: Mapping[str, Any]) -> ModelConfig:
    """The sizes of a published parameter tree, read off its shapes; computes in float32, keeps no activation.

    eps (1e-5) and RoPE's theta (10000) leave no trace in the arrays. ValueError names a missing tensor.
    """
    flat = flatten(_unboxed(tree))

    def shape(path: str) -> tuple[int, ...]:
        if path not in flat:
            raise ValueError(f"parameters: {path} is missing, this is not a BlockDiT checkpoint")
        return tuple(np.shape(flat[path]))

    def encoder(stack: str, width: int) -> EncoderConfig:
        first = f"{STACKS[stack]}0"
        return EncoderConfig(
            width=width,
            depth=_count_blocks(flat, STACKS[stack]),
            heads=shape(f"{first}/attention/q_norm/weight")[0],
            mlp_width=shape(f"{first}/mlp/w1/kernel")[1],
        )

    channels, width = shape("in_proj/kernel")
    vocabulary, text_width = shape("text_encoder/text_embedding/embedding")
    patch_width, speaker_width = shape("speaker_encoder/in_proj/kernel")
    return ModelConfig(
        latent_channels=channels,
        width=width,
        depth=_count_blocks(flat, STACKS["blocks/"]),
        heads=shape("TransformerBlock_0/attention/q_norm/weight")[0],
        mlp_width=shape("TransformerBlock_0/mlp/w1/kernel")[1],
        text=encoder("text_encoder/blocks/", text_width),
        speaker=encoder("speaker_encoder/blocks/", speaker_width),
        vocabulary=vocabulary,
        patch=patch_width // channels,
        timestep_width=shape("cond_dense_0/kernel")[0],
        adaln_rank=shape("TransformerBlock_0/attn_adaln/adaln_rank_shift/kernel")[1],
        compute_dtype="float32",
    )


def _layers(path: str, leaf: Any) -> Iterator[int | None]:
    if any(path.startswith(stack) for stack in STACKS):
        yield from range(leaf.shape[0])
    else:
        yield None


def _take(flat: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in flat:
        raise ValueError(f"parameters: {name} {shape} is missing")
    leaf = flat.pop(name)
    if leaf.shape != shape:
        raise ValueError(f"parameters: {name} has shape {leaf.shape}, the other tensors call for {shape}")
    return leaf


def _count_blocks(flat: Mapping[str, Any], prefix: str) -> int:
    return len({path.removeprefix(prefix).split("/")[0] for path in flat if path.startswith(prefix)})


def _unboxed(tree: Any) -> Any:
    """Leaves may be boxed (Flax's LogicallyPartitioned, read as a dict with its array under `value`)."""
    if not isinstance(tree, Mapping):
        return tree
    if "value" in tree and not isinstance(tree["value"], Mapping):
        return tree["value"]
    return {name: _unboxed(value) for name, value in tree.items()}
