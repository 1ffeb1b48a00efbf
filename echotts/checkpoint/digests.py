"""Digests of checkpoint arrays, which detect bit rot on disks.

A digest is the sum modulo 2^32, over all elements, of a bijective hash of the element's bits and index. It is therefore
independent of the sharding, each device reads its own part once, and any single changed element changes it. No device
communication is needed: partial sums are added on the hosts.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

from echotts.multihost.messages import reduce

STEP, FIRST, SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35  # odd constants: 2^32 / golden ratio; MurmurHash3's finalizer
MODULUS = 1 << 32


def array_digests(tree: Any) -> dict[str, str]:
    """Path -> digest, as eight hexadecimal digits, of each array in a tree that is complete in this process."""
    return _written(_sums(tree))


def global_digests(tree: Any) -> dict[str, str]:
    """`array_digests` of arrays sharded over the devices of all processes. Collective."""
    added = reduce("digests", _sums(tree), lambda each: {path: sum(one[path] for one in each) for path in each[0]})
    return _written({path: value % MODULUS for path, value in added.items()})


def json_digest(value: Any) -> str:
    """A digest of JSON-serialisable values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sums(tree: Any) -> dict[str, int]:
    """Path -> sum over this process's shards of each array; of replicas only one counts."""
    launched = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = jnp.asarray(leaf)
        shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
        starts = [[cut.start or 0 for cut in shard.index] for shard in shards]
        launched[jax.tree_util.keystr(path, simple=True, separator="/")] = [
            _digest(shard.data, np.array([start, array.shape], np.uint32))
            for shard, start in zip(shards, starts, strict=True)
        ]
    return {path: sum(map(int, parts)) % MODULUS for path, parts in jax.device_get(launched).items()}


def _written(sums: Mapping[str, int]) -> dict[str, str]:
    return {path: f"{value:08x}" for path, value in sums.items()}


@jax.jit
def _digest(part: Shaped[Array, "..."], bounds: UInt32[Array, "2 axes"]) -> UInt32[Array, ""]:
    """The sum over one shard; `bounds` are its start indices in the array, and the array's shape."""
    if part.dtype == jnp.bool_:
        part = part.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(part, jnp.dtype(f"uint{8 * min(part.dtype.itemsize, 4)}"))
    place = jnp.zeros((), jnp.uint32)
    for axis in range(part.ndim):
        along = jax.lax.broadcasted_iota(jnp.uint32, part.shape, axis) + bounds[0, axis]
        place = place * bounds[1, axis] + along
    mixed = bits.astype(jnp.uint32) ^ (place * jnp.uint32(STEP))
    for shift, factor in ((16, FIRST), (13, SECOND)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
