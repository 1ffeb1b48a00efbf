"""The train step: its results, and what they must not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from echotts.model.parameters import flatten, unflatten
from echotts.training import mesh as meshes
from echotts.training.optimizer import learning_rate, make_optimizer, update_average
from echotts.training.state import TrainState, initial_state
from echotts.training.step import make_train_step
from tests.tiny_training import TINY, random_batch, with_sections


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def step(mesh):
    return make_train_step(TINY, mesh)


@pytest.fixture(scope="module")
def begin(mesh):
    """Creates copies of one initial state, since the step donates its arguments."""
    state = initial_state(TINY, mesh)
    return lambda: jax.tree.map(jnp.copy, state)


def run(step, state, batches):
    numbers = []
    for batch in batches:
        state, metrics = step(state, batch)
        numbers.append(jax.device_get(metrics))
    return state, numbers


def at_step(state: TrainState, step: int) -> TrainState:
    return dataclasses.replace(state, step=jax.device_put(jnp.int32(step), state.step.sharding))


def assert_trees_equal(one, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 0, "atol": 0} | tolerance)), one, other)


def test_the_same_seed_and_step_give_the_same_update_bit_by_bit(step, begin):
    first, one = run(step, begin(), [random_batch()] * 2)
    second, other = run(step, begin(), [random_batch()] * 2)
    assert_trees_equal(first, second)
    assert_trees_equal(one, other)
    assert first.step.dtype == jnp.int32
    assert int(first.step) == 2


def test_another_step_draws_other_times_and_noise(step, begin):
    _, [zeroth] = run(step, begin(), [random_batch()])
    _, [fifth] = run(step, at_step(begin(), 5), [random_batch()])
    assert zeroth["loss"] != fifth["loss"]


def test_the_state_is_donated(step, begin):
    state = begin()
    step(state, random_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_all_batches_of_a_bucket_share_one_compilation(step, begin):
    run(step, begin(), [random_batch(seed=seed) for seed in range(3)])
    step(begin(), random_batch(), 3.0)
    assert step.compilations == 1


def test_accumulated_parts_equal_the_undivided_batch(step, mesh, begin):
    parts = make_train_step(with_sections(TINY, optim={"accumulation": 4}), mesh)
    batches = [random_batch(seed=seed) for seed in range(3)]
    state, expected = run(step, begin(), batches)
    accumulated, found = run(parts, begin(), batches)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-5)
        np.testing.assert_allclose(other["grad_norm"], one["grad_norm"], rtol=1e-4)
        np.testing.assert_allclose(other["row_loss"], one["row_loss"], rtol=1e-4)
    # Adam divides by the gradient's size, so rounding shows where a gradient is almost zero: compare with the rate
    assert_trees_equal(accumulated.params, state.params, atol=0.02 * TINY.optim.learning_rate)


def test_the_alignment_loss_fades_out(step, mesh, begin):
    flow = {"alignment": 0.5, "alignment_share": 0.5}
    aligned = make_train_step(with_sections(TINY, flow=flow, optim={"accumulation": 2}), mesh)
    faded = TINY.optim.steps // 2
    for number, weighs in ((0, True), (faded - 1, True), (faded, False)):
        _, [plain] = run(step, at_step(begin(), number), [random_batch()])
        _, [helped] = run(aligned, at_step(begin(), number), [random_batch()])
        assert helped["alignment"] > 0.1
        np.testing.assert_allclose(helped["loss"], plain["loss"], rtol=1e-5)
        assert (abs(helped["grad_norm"] / plain["grad_norm"] - 1) > 1e-3) == weighs


def test_a_row_that_is_not_finite_is_found_on_the_device(step, begin):
    batch = random_batch()
    batch.latent[3, 0, 0] = np.nan
    _, [numbers] = run(step, begin(), [batch])
    assert not numbers["finite"]
    assert np.flatnonzero(~np.isfinite(numbers["row_loss"])).tolist() == [3]


@pytest.mark.parametrize(("value", "limit", "finite"), [(np.nan, np.inf, False), (1e3, 9.0, True)])
def test_a_step_that_is_not_good_changes_nothing_but_its_number(step, begin, value, limit, finite):
    before, _ = run(step, at_step(begin(), 1), [random_batch()])  # moments and average are no longer those of the start
    kept = jax.tree.map(np.array, before)
    batch = random_batch(seed=1)
    batch.latent[3] = value
    after, numbers = step(before, batch, limit)
    assert (bool(numbers["good"]), bool(numbers["finite"])) == (False, finite)
    assert_trees_equal(after.arrays(), kept.arrays())
    assert int(after.step) == int(kept.step) + 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    moved, numbers = step(after, random_batch(seed=1), limit)
    assert numbers["good"]
    with pytest.raises(AssertionError):
        assert_trees_equal(moved.arrays(), kept.arrays())


def test_the_error_that_spikes_are_seen_by_does_not_depend_on_how_much_of_a_batch_is_padding(step, begin):
    batch = random_batch()
    _, [numbers] = run(step, begin(), [batch])
    np.testing.assert_allclose(numbers["error"], np.mean(numbers["row_loss"]), rtol=1e-6)
    np.testing.assert_allclose(numbers["error"], numbers["loss"] * numbers["valid_share"], rtol=1e-5)
    batch.latent_mask[:, 2:] = False  # the same frames, called padding
    _, [padded] = run(step, begin(), [batch])
    np.testing.assert_allclose(padded["error"], numbers["error"], rtol=1e-6)
    batch.latent_mask[4:] = False  # rows that only fill the batch
    _, [half] = run(step, begin(), [batch])
    np.testing.assert_allclose(half["error"], np.mean(numbers["row_loss"][:4]), rtol=1e-6)


def test_rows_that_only_fill_the_batch_change_nothing(step, begin):
    batch = random_batch()
    batch.latent_mask[5] = False
    other = jax.tree.map(np.copy, batch)
    other.latent[5] = 7.0
    state, _ = run(step, begin(), [batch])
    same, _ = run(step, begin(), [other])
    assert_trees_equal(same.params, state.params)


def test_masters_stay_float32_when_computing_in_bfloat16(step, mesh, begin):
    config = with_sections(TINY, model={"compute_dtype": "bfloat16"})
    state, [numbers] = run(make_train_step(config, mesh), begin(), [random_batch()])
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.ema))} == {jnp.dtype("float32")}
    _, [exact] = run(step, begin(), [random_batch()])
    np.testing.assert_allclose(numbers["loss"], exact["loss"], rtol=2e-2)


def test_the_average_follows_its_formula():
    average, params = {"w": jnp.float32(1.0)}, {"w": jnp.float32(3.0)}
    early = update_average(average, params, jnp.int32(0), decay=0.99)
    late = update_average(average, params, jnp.int32(100_000), decay=0.99)
    np.testing.assert_allclose(early["w"], 0.1 * 1 + 0.9 * 3, rtol=1e-6)
    np.testing.assert_allclose(late["w"], 0.99 * 1 + 0.01 * 3, rtol=1e-6)


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine_to_zero():
    optim = with_sections(TINY, optim={"steps": 100, "warmup_share": 0.1, "learning_rate": 2.0}).optim
    rates = [float(learning_rate(jnp.int32(step), optim)) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(rates, [0.0, 1.0, 2.0, 1.0, 0.0], atol=1e-6)


def test_the_learning_rate_is_constant_until_the_last_share_of_the_steps():
    optim = with_sections(TINY, optim={"steps": 110, "warmup_share": 0.1, "decay_share": 0.2}).optim
    rates = [float(learning_rate(jnp.int32(step), optim)) / optim.learning_rate for step in (11, 50, 90, 100, 110)]
    np.testing.assert_allclose(rates, [1.0, 1.0, 1.0, 0.5, 0.0], atol=1e-6)


def test_muon_orthogonalises_the_kernels_of_the_layers_and_leaves_the_rest_to_adamw():
    optim = with_sections(TINY, optim={"method": "muon", "weight_decay": 0.0, "clip_norm": 1e9}).optim
    rng = np.random.default_rng(0)
    shapes = {"blocks/attention/wq/kernel": (2, 6, 4), "blocks/attention/wq/bias": (2, 4), "out_proj/kernel": (6, 4)}
    params = unflatten({path: jnp.zeros(shape) for path, shape in shapes.items()})
    grads = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    optimizer = make_optimizer(optim, schedule=1.0)
    updates = flatten(optimizer.update(grads, optimizer.init(params), params)[0])
    kernels = updates["blocks/attention/wq/kernel"], flatten(grads)["blocks/attention/wq/kernel"]
    for update, gradient in zip(*kernels, strict=True):
        left, _, right = np.linalg.svd(-gradient, full_matrices=False)
        nearest = 0.2 * np.sqrt(6) * left @ right  # the orthogonal matrix, which Newton-Schulz only approximates
        np.testing.assert_allclose(update, nearest, atol=0.2 * np.sqrt(6) * 0.3)
    for path in ("blocks/attention/wq/bias", "out_proj/kernel"):
        signs = -np.sign(flatten(grads)[path])  # the direction of Adam's first step
        np.testing.assert_allclose(updates[path], signs * np.abs(updates[path]).max(), rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_finite_learning_rate(steps):
    optim = with_sections(TINY, optim={"steps": steps}).optim
    rates = [float(learning_rate(jnp.int32(step), optim)) for step in range(steps)]
    assert np.all(np.isfinite(rates))
    assert max(rates) > 0


def test_a_batch_that_cannot_be_divided_evenly_is_rejected():
    with pytest.raises(ValueError, match="8 is not a multiple of accumulation 3"):
        with_sections(TINY, optim={"accumulation": 3})
