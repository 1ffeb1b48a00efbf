"""Distillation: its loss in float64, fresh students, and few steps of a student against few steps of its teacher."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from echotts.data.stream.batch import Batch
from echotts.flow.distillation import distance, distillation_loss, draw_steps
from echotts.flow.options import SamplerConfig
from echotts.flow.sampling import encode_conditions, sample
from echotts.model import Conditions, build
from echotts.model.parameters import flatten, merge, structure, unflatten
from echotts.model.student import create_student, student_params, student_shapes
from tests.tiny_speaker import CONFIG, random_params
from tests.tiny_training import random_batch

RANK = 2
INTERVAL = (0.25, 0.75)
ROWS = 8
PARAMS = random_params()


def some_student(seed: int = 3, size: float = 0.2) -> dict:
    rng = np.random.default_rng(seed)
    shapes = student_shapes(CONFIG, RANK)
    return unflatten({path: size * rng.standard_normal(leaf.shape).astype(np.float32) for path, leaf in shapes.items()})


def built(student: dict):
    return build(CONFIG, student_params(PARAMS, student), student=True)


@pytest.fixture(scope="module")
def teacher():
    return build(CONFIG, PARAMS)


@pytest.fixture(scope="module")
def batch():
    return random_batch(rows=ROWS)


@jax.jit
def called(model, x, *inputs):
    return model(x, *inputs)


def given(batch) -> tuple:
    return tuple(map(jnp.asarray, (batch.text_ids, batch.text_mask, batch.speaker_latent, batch.speaker_mask)))


def test_the_loss_equals_its_formula_in_float64(teacher, batch):
    student, average = built(some_student(3)), built(some_student(4))
    steps = draw_steps(jax.random.key(5), ROWS, 1, (1.0, 4.0))
    noise = np.random.default_rng(6).standard_normal(batch.latent.shape).astype(np.float32)

    def row(model, number, x, t, *inputs, dropped=False):
        ids, text_mask, speaker, speaker_mask = (leaf[number : number + 1] for leaf in given(batch))
        if dropped:
            text_mask, speaker_mask, speaker = text_mask & False, speaker_mask & False, speaker * 0
        numbers = (jnp.float32([one]) for one in (t, *inputs))
        return np.asarray(
            called(model, jnp.float32(x)[None], next(numbers), ids, text_mask, speaker, speaker_mask, *numbers)
        )[0]

    errors = []
    for number in range(ROWS):
        t, d, w = (np.float64(leaf[number]) for leaf in (steps.t, steps.length, steps.scale))
        x = (1 - t) * batch.latent[number].astype(np.float64) + t * noise[number]
        if number % 4 == 0:
            assert d == 1 / 32
            conditioned = row(teacher, number, x, t).astype(np.float64)
            target = conditioned + (w if 0.25 <= t <= 0.75 else 0) * (
                conditioned - row(teacher, number, x, t, dropped=True)
            )
        else:
            first = row(average, number, x, t, d / 2, w).astype(np.float64)
            target = (first + row(average, number, x - d / 2 * first, t - d / 2, d / 2, w)) / 2
        errors.append(np.mean((row(student, number, x, t, d, w) - target) ** 2))
    expected = np.mean(errors) / (np.mean(batch.latent_mask) + 1e-6)
    loss, aux = jax.jit(distillation_loss, static_argnames=("interval", "loss"))(
        student, average, teacher, batch, steps, noise, interval=INTERVAL, loss="published"
    )
    np.testing.assert_allclose(aux["row_loss"], errors, rtol=1e-4)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_steps_lie_on_the_grids_of_1_to_32_steps_and_one_row_in_four_is_the_teachers():
    parts = 2
    drawn = [draw_steps(jax.random.key(seed), 64, parts, (1.0, 4.0)) for seed in range(8)]
    t, length, scale = (np.stack([getattr(steps, name) for steps in drawn]) for name in ("t", "length", "scale"))
    smallest = length == 1 / 32
    assert np.array_equal(smallest, np.broadcast_to(np.arange(64) // parts % 4 == 0, smallest.shape))
    assert {int(count) for count in (1 / length).ravel()} == {1, 2, 4, 8, 16, 32}
    assert np.array_equal(t / length, np.round(t / length))
    assert ((length <= t) & (t <= 1)).all()
    assert t[length == 0.5].min() == 0.5
    assert t[length == 0.5].max() == 1
    assert 1 <= scale.min() < 1.5
    assert 3.5 < scale.max() <= 4


def test_a_fresh_student_is_exactly_its_teacher_without_guidance(teacher, batch):
    graph = structure(CONFIG, student=True, adapter_rank=RANK)
    fresh = create_student(CONFIG, RANK, jax.random.key(0))
    in_training = merge(graph, unflatten(flatten(PARAMS) | flatten(fresh)))
    assert flatten(fresh).keys() == student_shapes(CONFIG, RANK).keys()
    t = jnp.linspace(0.1, 1, ROWS)
    noise = jnp.asarray(batch.latent)
    wanted = called(teacher, noise, t, *given(batch))
    inputs = (jnp.linspace(0, 1, ROWS), jnp.linspace(0, 6, ROWS))
    for student in (in_training, built(fresh)):
        found = called(student, noise, t, *given(batch), *inputs)
        np.testing.assert_array_equal(found, wanted)
    few = SamplerConfig(steps=4, student=True)
    plain = SamplerConfig(steps=4, cfg_scale=0.0)
    found = sample(built(fresh), encode_conditions(built(fresh), *given(batch)), noise, few)
    np.testing.assert_array_equal(found, sample(teacher, encode_conditions(teacher, *given(batch)), noise, plain))


def test_a_student_is_given_the_length_of_each_step_and_the_scale(batch):
    student = built(some_student())
    noise = jnp.asarray(batch.latent)
    x = noise
    for i in range(4):
        number = [jnp.full(ROWS, value, jnp.float32) for value in (1 - i / 4, 1 / 4, 2.0)]
        x = x - called(student, x, number[0], *given(batch), *number[1:]) / 4
    encoded = encode_conditions(student, *given(batch))
    found = sample(student, encoded, noise, SamplerConfig(steps=4, cfg_scale=2.0, student=True))
    np.testing.assert_allclose(found, x, atol=2e-4)
    other = sample(student, encoded, noise, SamplerConfig(steps=4, cfg_scale=3.0, student=True))
    assert np.abs(other - found).max() > 1e-3


def test_the_distance_is_between_four_steps_of_the_student_and_the_guided_steps_of_its_teacher(teacher, batch):
    student, wanted = built(some_student()), SamplerConfig(steps=32, cfg_scale=2.0)
    noise = jnp.asarray(batch.latent)[:, ::-1]
    ends = [
        np.asarray(sample(model, encode_conditions(model, *given(batch)), noise, config), np.float64)
        for model, config in ((student, SamplerConfig(steps=4, cfg_scale=2.0, student=True)), (teacher, wanted))
    ]
    measure = jax.jit(distance, static_argnames=("sampler", "loss"))
    loss, aux = measure(student, teacher, batch, noise, sampler=wanted, loss="published")
    rows = np.mean((ends[0] - ends[1]) ** 2, axis=(1, 2))
    np.testing.assert_allclose(aux["row_loss"], rows, rtol=1e-4)
    np.testing.assert_allclose(loss, rows.mean() / batch.latent_mask.mean(), rtol=1e-4)


MEAN, SPREAD = 1.5, 0.4  # two Gaussians at +-MEAN; the text says that it is the upper one


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TwoGaussians:
    """The exact velocity of a mixture in one dimension, and a student of it with a small network for the rest."""

    weights: Any = None  # of a student

    def encode_conditions(self, text_ids, text_mask, speaker_latent, speaker_mask):
        return Conditions(None, None, None, None, text_mask, speaker_mask)

    def modulate(self, t, length=None, scale=None):
        return jnp.stack([t, t if length is None else length, t if scale is None else scale], axis=-1)[None]

    def velocity(self, x, modulation, conditions):
        (inputs,) = jnp.broadcast_to(modulation, (1, len(x), 3))
        told = conditions.text_mask.any(axis=1)
        told = jnp.pad(told, (0, len(x) - len(told)))[:, None, None]  # the last rows may go without conditions
        t = inputs[:, :1, None]
        variance = (SPREAD * (1 - t)) ** 2 + t**2

        def of(mean):
            rest = (x - (1 - t) * mean) / variance  # of the noise, divided by t
            return t * rest - mean - (1 - t) * SPREAD**2 * rest

        upper = jnp.where(told, 1.0, jax.nn.sigmoid(2 * (1 - t) * MEAN * x / variance))
        exact = upper * of(MEAN) + (1 - upper) * of(-MEAN)
        if self.weights is None:
            return exact
        features = jnp.concatenate([x[:, 0], inputs, inputs[:, :1] - inputs[:, 1:2]], axis=-1)
        hidden = jnp.tanh(features @ self.weights["first"] + self.weights["bias"])
        hidden = jnp.tanh(hidden @ self.weights["second"])
        return exact + (hidden @ self.weights["last"])[:, None]

    def __call__(self, x, t, text_ids, text_mask, speaker_latent, speaker_mask, length, scale):
        conditions = self.encode_conditions(text_ids, text_mask, speaker_latent, speaker_mask)
        return self.velocity(x, self.modulate(t, length, scale), conditions)


def test_four_forwards_of_a_student_come_closer_to_the_guided_flow_than_four_guided_steps_of_its_teacher():
    rows, width, rng = 256, 32, np.random.default_rng(0)
    weights = {
        "first": rng.standard_normal((5, width)).astype(np.float32),
        "bias": rng.standard_normal(width).astype(np.float32),
        "second": rng.standard_normal((width, width)).astype(np.float32) * width**-0.5,
        "last": np.zeros((width, 1), np.float32),
    }
    teacher, optimizer = TwoGaussians(), optax.adam(optax.cosine_decay_schedule(1e-2, 1500))
    heard, nothing = jnp.ones((rows, 1), bool), jnp.zeros((rows, 1, 1))
    conditions = (jnp.zeros((rows, 1), jnp.int32), heard, nothing, heard & False)

    @jax.jit
    def step(carry, key):
        weights, average, state = carry
        keys = jax.random.split(key, 3)
        latent = MEAN + SPREAD * jax.random.normal(keys[0], (rows, 1, 1))
        batch = Batch(latent, heard, *conditions)
        steps, noise = draw_steps(keys[1], rows, 1, (0.5, 3.0)), jax.random.normal(keys[2], latent.shape)

        def loss(weights):
            students = TwoGaussians(weights), TwoGaussians(average)
            return distillation_loss(*students, teacher, batch, steps, noise, (0.0, 1.0), "frame")[0]

        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        weights = optax.apply_updates(weights, updates)
        return (weights, optax.incremental_update(weights, average, 0.05), state), None

    carry = (weights, weights, optimizer.init(weights))
    (_, average, _), _ = jax.lax.scan(step, carry, jax.random.split(jax.random.key(1), 1500))
    noise = jnp.linspace(-2, 2, rows)[:, None, None]
    for scale in (1.0, 2.0):
        encoded = teacher.encode_conditions(*conditions)
        wanted, plain = (
            sample(teacher, encoded, noise, SamplerConfig(steps=count, cfg_scale=scale)) for count in (32, 4)
        )
        few = SamplerConfig(steps=4, cfg_scale=scale, student=True)
        found = sample(TwoGaussians(average), encoded, noise, few)
        errors = [float(jnp.sqrt(jnp.mean((end - wanted) ** 2))) for end in (found, plain)]
        assert errors[0] < 0.3 * errors[1], errors
