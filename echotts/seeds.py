"""Random keys from 64-bit seeds: every bit counts, and each seed has its own key."""

import jax
from jaxtyping import Array, Key

from echotts.config import check_seed


def random_key(seed: int) -> Key[Array, ""]:
    """The key of a seed from 0 to 2^63 - 1. ValueError for other seeds.

    jax.random.key uses only the low 32 bits; the high bits are folded in if there are any.
    """
    check_seed(seed)
    low, high = seed & (1 << 32) - 1, seed >> 32
    key = jax.random.key(low)
    return jax.random.fold_in(key, high) if high else key
