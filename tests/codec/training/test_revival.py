"""Dead latent channels are found and drawn anew; live ones stay as they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from echotts.codec.backbone import encode_frames, init_params
from echotts.codec.training.revival import dead_channels, revived
from echotts.codec.training.step import initial_state
from echotts.codec.training.weight_norm import fold
from tests.codec.training.test_loop import SMALL, TRAINING

WIDTH = SMALL.codebook_dim
DEAD = 1
LIVE = [channel for channel in range(WIDTH) if channel != DEAD]


@pytest.fixture(scope="module")
def silenced():
    params = init_params(SMALL, jax.random.key(7))
    inward = params["bottleneck"]["in"]
    inward["kernel"] = inward["kernel"].at[:, :, DEAD].multiply(1e-3)
    return params


def test_a_channel_whose_mean_is_constant_is_dead(silenced):
    assert dead_channels(silenced) == [DEAD]
    assert dead_channels(init_params(SMALL, jax.random.key(7))) == []


def test_a_dead_channel_carries_sound_again_and_live_ones_stay_bit_by_bit(silenced):
    again = revived(silenced, SMALL, jax.random.key(1))
    audio = jnp.asarray(0.1 * np.random.default_rng(0).standard_normal((1, TRAINING.crop_samples)), jnp.float32)
    (before, _), (mean, deviation) = (encode_frames(params, SMALL, audio) for params in (silenced, again))
    assert dead_channels(again) == []
    assert np.std(mean[..., DEAD]) > 100 * np.std(before[..., DEAD])
    assert np.all(deviation[..., DEAD] < 0.5)
    np.testing.assert_array_equal(mean[..., LIVE], before[..., LIVE])
    out, old = again["bottleneck"]["out"]["kernel"], silenced["bottleneck"]["out"]["kernel"]
    np.testing.assert_array_equal(out[:, LIVE], old[:, LIVE])
    assert np.linalg.norm(out[:, DEAD]) > 0


def test_a_training_revives_only_when_asked_to(silenced):
    asked = dataclasses.replace(TRAINING, revive=True)
    assert dead_channels(fold(initial_state(asked, silenced).params["codec"])) == []
    assert dead_channels(fold(initial_state(TRAINING, silenced).params["codec"])) == [DEAD]


def test_latents_that_must_stay_are_not_revived():
    with pytest.raises(ValueError, match="revive changes the latents"):
        dataclasses.replace(TRAINING, revive=True, decoder_only=True)
