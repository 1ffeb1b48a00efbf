"""Digests of the arrays of a checkpoint, so that a bit that rots on a disk is found and not trained on.

A digest is a sum, modulo 2^32, over all elements of a bijective hash of the element's bits and place. So it is the same
however the array is cut over devices, each device reads its own part once, and any single changed element changes it.
"""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32

STEP, FIRST, SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35  # odd constants: 2^32 / golden ratio; MurmurHash3's finalizer


def array_digests(tree: Any) -> dict[str, str]:
    """Path -> digest, as eight hexadecimal digits, of each array in a tree. Of several processes all call it."""
    digests = jax.device_get(jax.tree.map(_digest, tree))  # one small program for each shape, launched one by one
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{int(value):08x}"
        for path, value in jax.tree_util.tree_leaves_with_path(digests)
    }


def json_digest(value: Any) -> str:
    """A digest of JSON-ready values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@jax.jit
def _digest(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * min(array.dtype.itemsize, 4)}"))
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    mixed = bits.astype(jnp.uint32) ^ (place * jnp.uint32(STEP))
    for shift, factor in ((16, FIRST), (13, SECOND)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
