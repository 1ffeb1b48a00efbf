"""Gradients flow where they should and nowhere else; and two thousand adversarial steps stay finite."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from echotts.codec.backbone import init_params
from echotts.codec.layers import Params
from echotts.codec.training.config import CodecOptim, CodecTraining, CropConfig
from echotts.codec.training.step import codec_loss, initial_state, make_step, round_trip
from tests.codec.training.test_loop import SMALL, TRAINING

AUDIO = jnp.asarray(0.1 * np.random.default_rng(0).standard_normal((2, TRAINING.crop_samples)), jnp.float32)
DAC = dataclasses.replace(SMALL, n_codebooks=2, codebook_size=8, codebook_dim=2)


def reached(training: CodecTraining, term: str, weights: Params) -> set[str]:
    """The parts of the codec that a term's gradient reaches."""

    def loss(params: Params) -> jax.Array:
        output, terms = round_trip(params, training, AUDIO, jax.random.key(0))
        return codec_loss(output, terms, training, AUDIO, None)[1][term]

    parts: dict[str, Any] = jax.jit(jax.grad(loss))(weights)
    parts = {"encoder": parts["encoder"], "decoder": parts["decoder"]} | parts["bottleneck"]
    if stages := parts.pop("quantizers", None):
        parts |= {name: [stage[name] for stage in stages] for name in ("in", "codebook", "out")}
    return {name for name, part in parts.items() if any(np.any(leaf) for leaf in jax.tree.leaves(part))}


@pytest.mark.parametrize(
    ("term", "decoder_only", "expected"),
    [
        ("mel", False, {"encoder", "in", "out", "decoder"}),
        ("mel", True, {"out", "decoder"}),
        ("kl", False, {"encoder", "in"}),
        ("kl", True, set()),
    ],
)
def test_each_term_reaches_its_parts_of_a_dacvae(term: str, decoder_only: bool, expected: set[str]):
    training = dataclasses.replace(TRAINING, decoder_only=decoder_only)
    assert reached(training, term, init_params(SMALL, jax.random.key(1))) == expected


@pytest.mark.parametrize(
    ("term", "decoder_only", "expected"),
    [
        ("mel", False, {"encoder", "in", "out", "decoder"}),
        ("mel", True, {"decoder"}),
        ("commitment", False, {"encoder", "in", "out", "codebook"}),
        ("codebook", True, set()),
    ],
)
def test_each_term_reaches_its_parts_of_a_dac(term: str, decoder_only: bool, expected: set[str]):
    training = dataclasses.replace(TRAINING, codec=DAC, decoder_only=decoder_only)
    found = reached(training, term, init_params(DAC, jax.random.key(1)))
    # what an earlier stage leaves over depends on its vectors, so the later stages' losses may reach those
    assert found == expected or (term == "commitment" and {"encoder", "in"} <= found <= expected)


def test_the_codecs_losses_do_not_reach_the_discriminators_nor_theirs_the_codec():
    quiet = dataclasses.replace(TRAINING.loss, adversarial=0.0, feature=0.0, adversarial_from=0)
    state = initial_state(TRAINING)
    judged = jax.jit(make_step(TRAINING, judged=True))(state, AUDIO, np.float32(np.inf))[0]
    deaf = dataclasses.replace(TRAINING, loss=dataclasses.replace(quiet, feature=1e-30))
    other = jax.jit(make_step(deaf, judged=True))(state, AUDIO, np.float32(np.inf))[0]
    alone = jax.jit(make_step(deaf, judged=False))(state, AUDIO, np.float32(np.inf))[0]
    # the discriminators learn the same whatever the codec's loss is made of
    jax.tree.map(np.testing.assert_array_equal, judged.params["discriminators"], other.params["discriminators"])
    # and the codec, where it does not listen to them, learns what it would without them
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        other.params["codec"],
        alone.params["codec"],
    )
    jax.tree.map(np.testing.assert_array_equal, alone.params["discriminators"], state.params["discriminators"])


@pytest.mark.slow
def test_two_thousand_adversarial_steps_stay_finite_with_silent_and_clipped_clips():
    training = dataclasses.replace(
        TRAINING, optim=CodecOptim(learning_rate=1e-3, clip_norm=10.0), crops=CropConfig(), batch_size=4, steps=2000
    )
    step = jax.jit(make_step(training, judged=True), donate_argnums=0)
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
