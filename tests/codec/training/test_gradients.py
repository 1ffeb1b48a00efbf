"""Gradients reach exactly the intended parameters; two thousand adversarial steps stay finite."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from echotts.codec.backbone import init_params
from echotts.codec.layers import Params
from echotts.codec.training.config import CodecOptim, CodecTraining, CropConfig
from echotts.codec.training.step import initial_state, make_step, round_trip
from tests.codec.training.test_loop import SMALL, TRAINING

AUDIO = jnp.asarray(0.1 * np.random.default_rng(0).standard_normal((2, TRAINING.crop_samples)), jnp.float32)
ONE_BOOK = dataclasses.replace(SMALL, n_codebooks=1, codebook_size=8, codebook_dim=2)


def reached(training: CodecTraining, terms: tuple[str, ...]) -> dict[str, set[str]]:
    """For each term the parts of the codec that its gradient reaches."""

    def gradients(params: Params) -> dict[str, Params]:
        def loss(params: Params, term: str) -> jax.Array:
            output, found = round_trip(params, training, AUDIO, jax.random.key(0))
            return (found | {"output": jnp.sum(output**2)})[term]

        return {term: jax.grad(loss)(params, term) for term in terms}

    return {
        term: {name for name, part in _parts(grads).items() if any(np.any(leaf) for leaf in jax.tree.leaves(part))}
        for term, grads in jax.jit(gradients)(init_params(training.codec, jax.random.key(1))).items()
    }


def _parts(params: Params) -> dict[str, Any]:
    parts = {"encoder": params["encoder"], "decoder": params["decoder"]} | params["bottleneck"]
    if stages := parts.pop("quantizers", None):
        parts |= {name: [stage[name] for stage in stages] for name in ("in", "codebook", "out")}
    return parts


def test_each_term_reaches_its_parts_of_a_dacvae_and_with_the_decoder_alone_only_the_decoder():
    found = reached(TRAINING, ("output", "kl"))
    assert found == {"output": {"encoder", "in", "out", "decoder"}, "kl": {"encoder", "in"}}
    alone = reached(dataclasses.replace(TRAINING, decoder_only=True), ("output", "kl"))
    assert alone == {"output": {"out", "decoder"}, "kl": set()}


def test_each_term_reaches_its_parts_of_a_dac():
    found = reached(dataclasses.replace(TRAINING, codec=ONE_BOOK), ("output", "commitment", "codebook"))
    assert found["output"] == {"encoder", "in", "out", "decoder"}  # straight through: not the codebook
    assert found["commitment"] == {"encoder", "in"}
    assert found["codebook"] == {"codebook"}
    alone = reached(dataclasses.replace(TRAINING, codec=ONE_BOOK, decoder_only=True), ("output", "commitment"))
    assert alone == {"output": {"decoder"}, "commitment": set()}


def test_the_discriminators_learn_the_same_whatever_the_codecs_loss_is_made_of():
    state = initial_state(TRAINING)
    other = dataclasses.replace(TRAINING, loss=dataclasses.replace(TRAINING.loss, mel=1.0, feature=0.5))
    first, second = (
        jax.jit(make_step(training, adversarial=True))(state, AUDIO, np.float32(np.inf))[0].params
        for training in (TRAINING, other)
    )
    jax.tree.map(np.testing.assert_array_equal, first["discriminators"], second["discriminators"])
    before = state.params["discriminators"]["spectra"][0]["head"]["direction"]
    assert not np.array_equal(first["discriminators"]["spectra"][0]["head"]["direction"], before)


@pytest.mark.slow
def test_two_thousand_adversarial_steps_stay_finite_with_silent_and_clipped_clips():
    training = dataclasses.replace(
        TRAINING, optim=CodecOptim(learning_rate=1e-3, clip_norm=10.0), crops=CropConfig(), batch_size=4, steps=2000
    )
    step = jax.jit(make_step(training, adversarial=True), donate_argnums=0)
    state = initial_state(training)
    rng = np.random.default_rng(0)
    time_s = np.arange(training.crop_samples) / SMALL.sample_rate
    bad = []
    for number in range(2000):
        batch = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 1000, (4, 1)) * time_s) * rng.uniform(0.01, 1, (4, 1))
        batch[0] = 0.0 if number % 3 == 0 else batch[0]
        batch[1] = np.clip(50 * batch[1], -1, 1) if number % 2 == 0 else batch[1]
        state, numbers = step(state, batch.astype(np.float32), np.float32(np.inf))
        if not numbers["good"]:
            bad.append(number)
    assert not bad
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.arrays()))
