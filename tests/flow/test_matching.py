"""Timesteps, path, condition dropout and loss: golden values, three golden updates, and their properties."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from echotts.checkpoint.interop import params_to_published, published_path
from echotts.config import FlowConfig, OptimConfig
from echotts.flow.matching import (
    BETWEEN_TOKENS,
    alignment_loss,
    condition_dropout,
    drop_conditions,
    flow_loss,
    path_and_target,
    stratified_timesteps,
    timesteps_at,
    velocity_loss,
)
from echotts.model import merge, no_decay, split
from echotts.model.parameters import flatten
from echotts.training.optimizer import make_optimizer
from tests.blockdit_golden import Golden
from tests.compiling import as_users_compile


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The fields the loss reads."""

    latent: Any
    latent_mask: Any
    text_ids: Any
    text_mask: Any
    speaker_latent: Any
    speaker_mask: Any


def random_batch(rows: int = 6, frames: int = 9) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        latent=jnp.asarray(rng.standard_normal((rows, frames, 3)), jnp.float32),
        latent_mask=jnp.asarray(np.arange(frames) < rng.integers(1, frames + 1, (rows, 1))),
        text_ids=jnp.asarray(rng.integers(1, 256, (rows, 5)), jnp.int32),
        text_mask=jnp.ones((rows, 5), bool),
        speaker_latent=jnp.asarray(rng.standard_normal((rows, 4, 3)), jnp.float32),
        speaker_mask=jnp.ones((rows, 4), bool),
    )


def half(x: Any, t: Any, *_: Any) -> Any:
    """A velocity function that needs no model."""
    return 0.5 * x + t[:, None, None]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("tiny_loss")


@pytest.fixture(scope="module")
def golden_batch(golden: Golden) -> Batch:
    ids, text_mask, speaker_latent, speaker_mask = golden.conditions()
    batch = Batch(
        golden["in_latent"].astype(jnp.float32), golden["in_latent_mask"].astype(bool),
        ids, text_mask, speaker_latent, speaker_mask,
    )  # fmt: skip
    return drop_conditions(batch, golden["in_text_keep"].astype(bool), golden["in_speaker_keep"].astype(bool))


@pytest.fixture(scope="module")
def golden_gradient(golden: Golden, golden_batch: Batch) -> Any:
    """Compiled params -> (loss, gradients) on the golden batch."""
    graphdef, _ = split(golden.model())

    def loss(params: Any) -> Any:
        return velocity_loss(merge(graphdef, params), golden_batch, golden["in_t"], golden["in_noise"], "published")[0]

    with as_users_compile():
        return jax.jit(jax.value_and_grad(loss)).lower(golden.params()).compile()


def test_timesteps_equal_the_golden_ones():
    golden = Golden("timesteps")
    for case in range(int(golden["num_cases"])):
        offset, shift = golden[f"c{case}_offset"], golden[f"c{case}_mod_offset"]
        actual = timesteps_at(offset, shift, int(golden[f"c{case}_batch"]))
        np.testing.assert_allclose(actual, golden[f"c{case}_t"], rtol=0, atol=1e-5)


def test_timesteps_take_one_of_each_stratum_and_roll_over_the_rows():
    draws = np.stack([stratified_timesteps(jax.random.key(seed), 8, FlowConfig()) for seed in range(12)])
    quantile = np.asarray(jax.scipy.stats.norm.cdf(jax.scipy.special.logit(draws)))
    np.testing.assert_array_equal(np.sort(np.floor(quantile * 8), axis=1), np.tile(np.arange(8), (12, 1)))
    assert len(np.unique(np.floor(quantile[:, 0] * 8))) > 3


def test_the_path_runs_from_data_to_noise_at_the_target_velocity():
    batch = random_batch()
    noise = jax.random.normal(jax.random.key(1), batch.latent.shape)
    at = {t: path_and_target(batch.latent, noise, jnp.full(6, t)) for t in (0.0, 0.25, 1.0)}
    np.testing.assert_array_equal(at[0.0][0], batch.latent)
    np.testing.assert_array_equal(at[1.0][0], noise)
    np.testing.assert_allclose(at[0.0][0] + 0.25 * at[0.0][1], at[0.25][0], atol=1e-6)


def test_loss_equals_the_golden_loss(golden: Golden, golden_gradient: Any):
    loss, _ = golden_gradient(golden.params())
    np.testing.assert_allclose(loss, golden["out_loss"], rtol=1e-4)


def test_gradient_norms_equal_the_golden_ones_in_total_and_per_parameter(golden: Golden, golden_gradient: Any):
    _, gradients = golden_gradient(golden.params())
    np.testing.assert_allclose(optax.tree.norm(gradients), golden["out_grad_norm"], rtol=1e-4)
    norms = {path: np.linalg.norm(leaf) for path, leaf in flatten(params_to_published(gradients)).items()}
    assert norms.keys() == golden.meta["grad_norm_by_path"].keys()
    for path, expected in golden.meta["grad_norm_by_path"].items():
        np.testing.assert_allclose(norms[path], expected, rtol=1e-4, atol=1e-9, err_msg=path)


def test_no_decay_names_the_golden_paths_published_and_stacked(golden: Golden):
    published = flatten(params_to_published(golden.params()))
    assert {path for path in published if no_decay(path)} == set(golden.meta["no_decay_paths"])
    for path in flatten(golden.params()):
        assert no_decay(path) == no_decay(published_path(path, 0))


def test_three_adamw_updates_equal_the_golden_ones(golden: Golden, golden_gradient: Any):
    params = jax.tree.map(jnp.asarray, golden.params())
    adamw = golden.meta["optimizer"]
    config = OptimConfig(
        clip_norm=float(adamw["clip"]), **{key: adamw[key] for key in ("b1", "b2", "eps", "weight_decay")}
    )
    optimizer = make_optimizer(config, schedule=adamw["lr"])
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    losses, norms, param_norms = [], [], []
    for _ in range(3):
        loss, gradients = golden_gradient(params)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(loss)
        norms.append(optax.tree.norm(gradients))
        param_norms.append(optax.tree.norm(params))
    np.testing.assert_allclose([*losses, golden_gradient(params)[0]], golden["out_losses"], rtol=1e-4)
    np.testing.assert_allclose(norms, golden["out_grad_norms"], rtol=1e-4)
    np.testing.assert_allclose(param_norms, golden["out_param_norms"], rtol=1e-4)


def test_frame_loss_is_the_mean_over_valid_frames():
    batch = random_batch()
    t, noise = jnp.full(6, 0.3), jax.random.normal(jax.random.key(1), batch.latent.shape)
    loss, aux = velocity_loss(half, batch, t, noise, "frame")
    x_t, target = path_and_target(batch.latent, noise, t)
    error = np.asarray((half(x_t, t) - target) ** 2).mean(axis=-1)
    np.testing.assert_allclose(loss, error[np.asarray(batch.latent_mask)].mean(), rtol=1e-5)
    np.testing.assert_allclose(aux["row_loss"][0], error[0][np.asarray(batch.latent_mask[0])].mean(), rtol=1e-5)


@pytest.mark.parametrize("loss", ["published", "frame"])
def test_rows_that_fill_the_batch_change_nothing_but_the_weight(loss: Any):
    batch = random_batch()
    filled = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:2]]), batch)
    filled = dataclasses.replace(filled, latent_mask=filled.latent_mask.at[6:].set(False))
    t, noise = jnp.linspace(0, 1, 8), jax.random.normal(jax.random.key(1), filled.latent.shape)
    expected, _ = velocity_loss(half, batch, t[:6], noise[:6], loss)
    actual, aux = velocity_loss(half, filled, t, noise, loss)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    np.testing.assert_array_equal(aux["kept"], [True] * 6 + [False] * 2)


@pytest.mark.parametrize("loss", ["published", "frame"])
def test_the_loss_of_parts_weighted_by_their_weight_is_the_loss_of_the_whole(loss: Any):
    batch = random_batch()
    t, noise = jnp.linspace(0, 1, 6), jax.random.normal(jax.random.key(1), batch.latent.shape)
    whole, _ = velocity_loss(half, batch, t, noise, loss)
    parts = [
        velocity_loss(half, jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch), t[rows], noise[rows], loss)
        for rows in (slice(0, 3), slice(3, 6))
    ]
    weights = [aux["weight"] for _, aux in parts]
    np.testing.assert_allclose(
        sum(w * loss for w, (loss, _) in zip(weights, parts, strict=True)) / sum(weights), whole, rtol=1e-5
    )


def test_dropout_hides_each_condition_of_a_tenth_of_the_rows_independently():
    batch = random_batch(rows=8000, frames=1)
    dropped = condition_dropout(jax.random.key(0), batch, FlowConfig())
    text, speaker = ~np.asarray(dropped.text_mask).any(axis=1), ~np.asarray(dropped.speaker_mask).any(axis=1)
    assert abs(text.mean() - 0.1) < 0.015
    assert abs(speaker.mean() - 0.1) < 0.015
    assert 0.004 < (text & speaker).mean() < 0.018
    np.testing.assert_array_equal(dropped.speaker_latent[speaker], 0)
    np.testing.assert_array_equal(dropped.speaker_latent[~speaker], batch.speaker_latent[~speaker])
    np.testing.assert_array_equal(dropped.text_ids, batch.text_ids)


def test_evaluation_drops_nothing_and_the_key_decides_everything():
    batch, config = random_batch(), FlowConfig(text_dropout=1.0, speaker_dropout=1.0)
    seen: list[Any] = []

    def watched(*arguments: Any) -> Any:
        seen.append(arguments[3:6:2])
        return half(*arguments)

    losses = [
        float(flow_loss(watched, batch, jax.random.key(seed), config, train)[0])
        for seed, train in ((0, False), (0, True), (0, False), (1, False))
    ]
    assert all(mask.all() for mask in seen[0])
    assert not any(mask.any() for mask in seen[1])
    assert losses[0] == losses[2] != losses[3]


def test_the_alignment_loss_sums_all_ways_through_the_tokens_in_order():
    scores = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    tokens, frames = (3, 2), (4, 5)
    text_mask = jnp.arange(4) < jnp.asarray(tokens)[:, None]
    latent_mask = jnp.arange(5) < jnp.asarray(frames)[:, None]
    expected = [
        -np.logaddexp.reduce([chance for way, chance in ways(own[:t, :n].astype(float)) if way == list(range(n))])
        for own, n, t in zip(scores, tokens, frames, strict=True)
    ]
    np.testing.assert_allclose(alignment_loss(jnp.asarray(scores), text_mask, latent_mask), expected, rtol=1e-5)


def ways(scores: np.ndarray) -> Any:
    """Every sequence of tokens that the frames can pass through, with the log of its probability."""
    frames, tokens = scores.shape
    chances = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    chances = np.hstack([chances, np.full((frames, 1), BETWEEN_TOKENS)])
    chances -= np.logaddexp.reduce(chances, axis=1, keepdims=True)
    for path in itertools.product(range(tokens + 1), repeat=frames):
        way = [token for token, _ in itertools.groupby(path) if token < tokens]
        yield way, sum(chances[frame, token] for frame, token in enumerate(path))


def test_rows_without_text_or_with_more_tokens_than_frames_have_no_alignment():
    scores = jnp.zeros((2, 3, 4))
    text_mask, latent_mask = jnp.asarray([[False] * 4, [True] * 4]), jnp.ones((2, 3), bool)

    def total(scores: Any) -> Any:
        return alignment_loss(scores, text_mask, latent_mask).sum()

    value, grads = jax.value_and_grad(total)(scores)
    assert value == 0
    np.testing.assert_array_equal(grads, 0)


def test_the_mean_and_deviation_of_the_times_are_those_of_their_logits():
    config = FlowConfig(time_mean=0.4, time_std=0.5)
    t = np.asarray(stratified_timesteps(jax.random.key(0), 4096, config))
    logits = np.log(t / (1 - t))
    np.testing.assert_allclose([logits.mean(), logits.std()], [0.4, 0.5], atol=2e-3)
