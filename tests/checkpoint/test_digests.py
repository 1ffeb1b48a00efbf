"""Digests of arrays: they depend on every element, but not on the sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.checkpoint.digests import array_digests, json_digest

DTYPES = ["float32", "int32", "bfloat16", "float16", "uint8", "bool"]


def digest(array) -> str:
    return array_digests({"a": jnp.asarray(array)})["a"]


@given(place=st.integers(0, 23), bit=st.integers(0, 31))
@settings(max_examples=50, deadline=None)
def test_one_flipped_bit_changes_the_digest(place, bit):
    array = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    changed = array.copy()
    changed.view(np.uint32).reshape(-1)[place] ^= np.uint32(1 << bit)
    assert digest(changed) != digest(array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_dtype_has_a_digest_of_its_bits(dtype):
    array = jnp.asarray(np.arange(6).reshape(2, 3) % 2, dtype)
    assert digest(array) == digest(array + 0) != digest(array.T.reshape(2, 3))
    assert digest(array[0, 0]) != digest(array[0, 1])


def test_two_elements_that_change_places_change_the_digest():
    array = np.arange(8, dtype=np.float32)
    assert digest(array) != digest(array[[1, 0, 2, 3, 4, 5, 6, 7]])
    assert digest(np.float32(0.0)) != digest(np.float32(-0.0))


def test_each_array_has_its_own_digest_by_its_path():
    tree = {"params": {"kernel": jnp.ones(3)}, "count": jnp.int32(1)}
    assert sorted(array_digests(jax.tree.map(jnp.copy, tree))) == ["count", "params/kernel"]


def test_json_has_the_same_digest_whatever_the_order_of_its_keys():
    assert json_digest({"a": 1, "b": [2.5]}) == json_digest({"b": [2.5], "a": 1}) != json_digest({"a": 1, "b": [2]})
