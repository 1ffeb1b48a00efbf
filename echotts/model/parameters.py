"""Parameters as plain nested dicts of arrays: between modules and the pure functions that train, save and load them."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from echotts.config import ModelConfig
from echotts.model import layers
from echotts.model.dit import BlockDiT

Params: TypeAlias = dict[str, Any]  # nested; leaves are arrays, layers stacked along their first axis

NO_DECAY = frozenset({"bias", "scale", "weight", "gate", "shift", "out_proj"})
NO_DECAY_PREFIX = "adaln_rank_"


def split(model: BlockDiT) -> tuple[Any, Params]:
    """(structure, parameters). The structure is static and hashable; parameters are a nested dict of arrays."""
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def merge(graphdef: Any, params: Params) -> BlockDiT:
    """The model with this structure and these parameters; works under jit, grad and scan."""
    return nnx.merge(graphdef, params)


def build(config: ModelConfig, params: Params, **hooks: Any) -> BlockDiT:
    """A model with the given parameters and hooks of BlockDiT, without initialising any parameter."""
    return merge(structure(config, **hooks), params)


def structure(config: ModelConfig, **hooks: Any) -> Any:
    """The static structure of a model with this config and these hooks of BlockDiT, without allocating parameters."""
    return split(abstract(config, **hooks))[0]


def abstract(config: ModelConfig, **hooks: Any) -> BlockDiT:
    """A model whose parameters are shapes only (jax.ShapeDtypeStruct)."""
    return nnx.eval_shape(lambda: BlockDiT(config, rngs=nnx.Rngs(0), **hooks))


def expected_shapes(config: ModelConfig) -> dict[str, Any]:
    """Path -> jax.ShapeDtypeStruct of every parameter of a model of this config."""
    return flatten(split(abstract(config))[1])


def zeros(shapes: Any) -> Any:
    """A tree of zeros with the shapes and dtypes of the leaves."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def count_parameters(params: Any) -> int:
    """Number of values in a parameter tree or a model; shapes suffice."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> {"blocks/attention/wq/kernel": leaf, ...}, in the order of the tree."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        path = f"{prefix}/{name}" if prefix else str(name)
        flat.update(flatten(value, path) if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`."""
    params: Params = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return params


def computed_with(params: Params, dtype: Any) -> Params:
    """Parameters for inference: kernels are cast once to the dtype that layers would otherwise cast them to.

    The results are the same. The last projection computes in float32 and is unchanged.
    """

    def cast(path: str, leaf: Any) -> Any:
        return leaf.astype(dtype) if path.endswith("/kernel") and not path.startswith("out_proj/") else leaf

    return unflatten({path: cast(path, leaf) for path, leaf in flatten(params).items()})


def scale_to_fan_in(params: Params) -> Params:
    """Fresh parameters with kernels of std 1 / sqrt(inputs) and embeddings of std 1 instead of the published 0.02.

    At 192 channels the published initialisation attenuates inputs to a quarter: gates start near zero, and a small
    model takes long to learn the alignment of text and speech.
    """

    def scale(path: str, leaf: Any) -> Any:
        if path.endswith("/kernel"):
            return leaf * (leaf.shape[-2] ** -0.5 / layers.INITIAL_STD)
        return leaf / layers.INITIAL_STD if path.endswith("/embedding") else leaf

    return unflatten({path: scale(path, leaf) for path, leaf in flatten(params).items()})


def no_decay(path: str) -> bool:
    """Whether the parameter at this '/'-joined path is excluded from weight decay; published and stacked paths alike.

    True for biases, norm gains, all of AdaLN and the output projection. Components are matched whole, so
    `wgate` and `cond_dense_global_gate` do decay.
    """
    return any(part in NO_DECAY or part.startswith(NO_DECAY_PREFIX) for part in path.split("/"))
