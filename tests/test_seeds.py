"""Seeds: each has its own key, from 0 to 2^63 - 1."""

import jax
import numpy as np
import pytest

from echotts.config import RunConfig
from echotts.seeds import random_key

SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 3 * 2**32, 2**63 - 1]


def test_each_seed_has_its_own_key_and_small_ones_the_one_they_always_had():
    keys = [tuple(jax.random.key_data(random_key(seed)).tolist()) for seed in SEEDS]
    assert len(set(keys)) == len(SEEDS)
    for seed in SEEDS[:4]:
        np.testing.assert_array_equal(jax.random.key_data(random_key(seed)), jax.random.key_data(jax.random.key(seed)))


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_a_seed_out_of_range_is_refused_with_the_range(seed):
    for take in (random_key, lambda seed: RunConfig(seed=seed)):
        with pytest.raises(ValueError, match=rf"seed {seed}: give a whole number from 0 to 2\^63 - 1"):
            take(seed)
