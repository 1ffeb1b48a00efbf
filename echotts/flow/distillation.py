"""Distillation: the loss of a student that takes a few large steps where its teacher takes many small guided ones.

s(x, t, d, w) is the average velocity of the guided flow from t to t - d, with the guidance scale w as an input; a step
is x <- x - d s(x, t, d, w). Shortcut models (Frans et al. 2024, arXiv 2410.12557): it equals two of half its length,

    s(x, t, 2d, w) = (s(x, t, d, w) + s(x - d s(x, t, d, w), t - d, d, w)) / 2

with the EMA of the student on the right, so that no derivative along the path (Jacobian-vector product) is needed. The
smallest steps are the teacher's: s(x, t, 1/32, w) = v_c + w (v_c - v_none), guided as in sampling.py. Here the teacher
is frozen, and as w is an input, guidance is applied once and not at every doubling.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from echotts.config import ROWS_PER_TEACHER, LossName
from echotts.flow.matching import TrainingBatch, path_and_target, squared_error
from echotts.flow.options import DOUBLINGS, SMALLEST_STEPS, STUDENT_STEPS, SamplerConfig
from echotts.flow.sampling import encode_conditions, guided_velocity, sample


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Steps:
    """A step for each row: from `t` to t - `length`, with guidance scale `scale`; arrays (b,)."""

    t: Any
    length: Any
    scale: Any


def draw_steps(key: Key[Array, ""], rows: int, parts: int, scales: tuple[float, float]) -> Steps:
    """Random steps of the grids of 1 to 32 steps; the lengths of a batch are spread evenly.

    In each of `parts` interleaved parts of the batch (`mean_gradients`) every fourth row has the smallest step.
    """
    length_key, place_key, scale_key = jax.random.split(key, 3)
    row = jnp.arange(rows)
    doubled = (row + jax.random.randint(length_key, (), 0, DOUBLINGS)) % DOUBLINGS
    smallest = row // parts % ROWS_PER_TEACHER == 0
    count = jnp.where(smallest, SMALLEST_STEPS, 2**doubled).astype(jnp.float32)
    t = (jnp.floor(jax.random.uniform(place_key, (rows,)) * count) + 1) / count
    return Steps(t, 1 / count, jax.random.uniform(scale_key, (rows,), minval=scales[0], maxval=scales[1]))


def distillation_loss(
    student: Any,
    average: Any,
    teacher: Any,
    batch: TrainingBatch,
    steps: Steps,
    noise: Float[Array, "b t c"],
    interval: tuple[float, float],
    loss: LossName,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss of a student (BlockDiT) against its average and its teacher, which are constants; aux: `squared_error`.

    The number of rows is a multiple of ROWS_PER_TEACHER, and `steps` are `draw_steps`. Within `interval` the teacher is
    guided.
    """
    x, _ = path_and_target(batch.latent.astype(jnp.float32), noise, steps.t)
    conditions = (batch.text_ids, batch.text_mask, batch.speaker_latent, batch.speaker_mask)
    smallest, doubled = _dealt((x, steps, conditions))
    target = _gathered(guided(teacher, interval, *smallest), two_steps(average, *doubled))
    velocity = student(x, steps.t, *conditions, steps.length, steps.scale)
    return squared_error(velocity, jax.lax.stop_gradient(target), batch.latent_mask, loss)


def guided(
    teacher: Any, interval: tuple[float, float], x: Float[Array, "b t c"], steps: Steps, conditions: tuple[Any, ...]
) -> Float[Array, "b t c"]:
    """The teacher's velocity with joint guidance, of another scale in each row."""
    modulation = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf], axis=1), teacher.modulate(steps.t))
    inside = (steps.t >= interval[0]) & (steps.t <= interval[1])
    scale = jnp.where(inside, steps.scale, 0.0)[None, :, None, None]
    return guided_velocity(teacher, x, modulation, teacher.encode_conditions(*conditions), scale)


def two_steps(
    student: Any, x: Float[Array, "b t c"], steps: Steps, conditions: tuple[Any, ...]
) -> Float[Array, "b t c"]:
    """The average velocity of two steps of half the length."""
    encoded, half = student.encode_conditions(*conditions), steps.length / 2
    first = student.velocity(x, student.modulate(steps.t, half, steps.scale), encoded)
    between = x - half[:, None, None] * first
    second = student.velocity(between, student.modulate(steps.t - half, half, steps.scale), encoded)
    return (first + second) / 2


def distance(
    student: Any,
    teacher: Any,
    batch: TrainingBatch,
    noise: Float[Array, "b t c"],
    sampler: SamplerConfig,
    loss: LossName,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """How far a student's default steps end from the teacher's `sampler`, from the same noise; aux: `squared_error`.

    The difference of the latents is that of the average velocities from noise to data.
    """
    conditions = (batch.text_ids, batch.text_mask, batch.speaker_latent, batch.speaker_mask)
    few = SamplerConfig(steps=STUDENT_STEPS, cfg_scale=sampler.cfg_scale, student=True)
    wanted = sample(teacher, encode_conditions(teacher, *conditions), noise, sampler)
    return squared_error(
        sample(student, encode_conditions(student, *conditions), noise, few), wanted, batch.latent_mask, loss
    )


def _dealt(tree: Any) -> tuple[Any, Any]:
    """The rows with the smallest steps, and the others."""
    dealt = jax.tree.map(lambda x: x.reshape(-1, ROWS_PER_TEACHER, *x.shape[1:]), tree)
    others = jax.tree.map(lambda x: x[:, 1:].reshape(-1, *x.shape[2:]), dealt)
    return jax.tree.map(lambda x: x[:, 0], dealt), others


def _gathered(smallest: Float[Array, "a t c"], others: Float[Array, "d t c"]) -> Float[Array, "b t c"]:
    """The rows of both in their order in the batch."""
    grouped = others.reshape(-1, ROWS_PER_TEACHER - 1, *others.shape[1:])
    return jnp.concatenate([smallest[:, None], grouped], axis=1).reshape(-1, *others.shape[1:])
