"""Weight norm (arXiv 1602.07868): kernels are split into gain and direction for training, and folded elsewhere."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from echotts.codec.layers import Params


def unfold(params: Params) -> Params:
    """Splits each kernel into gain and direction; the gain is the norm per output channel (`up`: input channel)."""
    return _visit(params, "", "kernel", _unfolded)


def fold(weights: Params) -> Params:
    """The inverse of `unfold`: kernel = gain * direction / norm."""
    return _visit(weights, "", "direction", _folded)


def _unfolded(node: Params, name: str) -> Params:
    return {"gain": _norm(node["kernel"], name), "direction": node["kernel"], "bias": node["bias"]}


def _folded(node: Params, name: str) -> Params:
    return {"kernel": node["gain"] / _norm(node["direction"], name) * node["direction"], "bias": node["bias"]}


def _visit(node: Any, name: str, mark: str, change: Any) -> Any:
    if isinstance(node, list):
        return [_visit(child, name, mark, change) for child in node]
    if not isinstance(node, dict):
        return node
    if mark in node:
        return change(node, name)
    return {key: _visit(child, key, mark, change) for key, child in node.items()}


def _norm(kernel: Float[Array, "*k i o"], name: str) -> Float[Array, "..."]:
    kept = kernel.ndim - (2 if name == "up" else 1)
    return jnp.sqrt(jnp.sum(kernel**2, [axis for axis in range(kernel.ndim) if axis != kept], keepdims=True))
