"""Sampling: from noise (t = 1) to data (t = 0) with a first- or second-order solver and classifier-free guidance.

v = v_c + sum over branches of s (v_c - v_branch), so a scale of 0 means no guidance. Joint guidance has one branch
without both conditions (published: scale 3 at every t); independent guidance has one without text and one without
speaker (Echo: 3 and 8, for t in 0.5..1). A dropped condition is only a mask, and a row without either condition attends
only to its own latents, so all branches of a step run as one batch over cached keys and values. Everything that depends
only on the timesteps is computed once for all steps, before their loop.
Formulas: docs/sampling.md.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from echotts.flow.options import TIME_TOLERANCE, Drop, SamplerConfig

STEPS_ROUNDED = 32  # one compiled loop serves up to 32 steps, the next one up to 64
MOST_LAYERS = 1 << 20  # "all layers" as a number


@runtime_checkable
class Conditions(Protocol):
    """Encoded text and speaker: a dataclass of keys and values (l, b, n, h, d), and a mask for each of the two."""

    @property
    def text_mask(self) -> Any: ...

    @property
    def speaker_mask(self) -> Any: ...


@runtime_checkable
class VelocityModel(Protocol):
    """A pytree with a velocity; BlockDiT is one.

    `modulate` maps times (s,) to the modulation that `velocity` needs, with leaves (l, s, ...); `velocity` is given
    that of a single time, (l, 1, ...).
    """

    def modulate(self, t: Any) -> Any: ...

    def velocity(self, x: Any, modulation: Any, conditions: Any) -> Any: ...


@runtime_checkable
class ConditionEncoder(Protocol):
    """A pytree that encodes the conditions of a velocity; BlockDiT is one."""

    def encode_conditions(self, text_ids: Any, text_mask: Any, speaker_latent: Any, speaker_mask: Any) -> Any: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Schedule:
    """SamplerConfig as arrays: the traced arguments of the compiled loop."""

    scales: Any  # (branches,) float32; of a student (1,)
    times: Any  # (n + 1,) float32, n the steps rounded up, zeros at the end
    slopes: Any  # (n,) float32: how much of v - v_before a step adds to v; zeros are Euler's method
    steps: Any  # () int32, as the next two
    guided_from: Any
    guided_to: Any
    rescale: Any  # (2,) float32: k and s
    speaker_kv: Any  # (n, 2) float32: the factor in the first layers and in the others
    speaker_kv_layers: Any  # () int32

    @classmethod
    def of(cls, config: SamplerConfig) -> "Schedule":
        first, end = config.guided_steps
        times, padding = config.times, -config.steps % STEPS_ROUNDED
        slopes = np.zeros(config.steps, np.float32)
        if config.solver == "ab2":
            widths = -np.diff(times)
            slopes[1:] = widths[1:] / (2 * widths[:-1])
        scaled = np.where(times[:-1] >= config.speaker_kv_until - TIME_TOLERANCE, config.speaker_kv_scale, 1.0)
        speaker_kv = np.stack([scaled, np.ones_like(scaled)], axis=1).astype(np.float32)
        layers = MOST_LAYERS if config.speaker_kv_layers is None else config.speaker_kv_layers
        return cls(
            scales=np.asarray([config.cfg_scale] if config.student else list(config.branches.values()), np.float32),
            times=np.pad(times, (0, padding)),
            slopes=np.pad(slopes, (0, padding)),
            steps=np.int32(config.steps),
            guided_from=np.int32(first),
            guided_to=np.int32(end),
            rescale=np.asarray(config.rescale or (1.0, 1.0), np.float32),
            speaker_kv=np.pad(speaker_kv, ((0, padding), (0, 0)), constant_values=1.0),
            speaker_kv_layers=np.int32(layers),
        )


@dataclass(frozen=True)
class Kind:
    """The properties of a SamplerConfig that change the compiled program."""

    drops: tuple[Drop, ...]
    alternating: bool
    rescaled: bool
    speaker_scaled: bool
    student: bool

    @classmethod
    def of(cls, config: SamplerConfig) -> "Kind":
        alternating = config.alternating and len(config.branches) > 1  # no effect with one branch
        scaled = config.speaker_kv_scale != 1.0
        return cls(tuple(config.branches), alternating, config.rescale is not None, scaled, config.student)


@jax.jit
def encode_conditions(
    model: ConditionEncoder,
    text_ids: Int[Array, "b n"],
    text_mask: Bool[Array, "b n"],
    speaker_latent: Float[Array, "b m c"],
    speaker_mask: Bool[Array, "b m"],
) -> Conditions:
    """`model.encode_conditions`, compiled once per bucket."""
    return model.encode_conditions(text_ids, text_mask, speaker_latent, speaker_mask)


def sample(
    model: VelocityModel, conditions: Conditions, noise: Float[Array, "b t c"], config: SamplerConfig
) -> Float[Array, "b t c"]:
    """Latents from noise. Compiled once per shape, kind of sampling (`Kind`) and 32 steps."""
    return _sample(model, conditions, noise * np.float32(config.truncation), Schedule.of(config), kind=Kind.of(config))


def lower_sample(model: VelocityModel, conditions: Conditions, noise: Any, config: SamplerConfig) -> Any:
    """The program of `sample` for arguments that may be shapes only (jax.ShapeDtypeStruct); nothing runs."""
    return _sample.lower(model, conditions, noise, Schedule.of(config), kind=Kind.of(config))


@functools.partial(jax.jit, static_argnames="kind")
def _sample(
    model: VelocityModel,
    conditions: Conditions,
    noise: Float[Array, "b t c"],
    schedule: Schedule,
    *,
    kind: Kind,
) -> Float[Array, "b t c"]:
    branched = None if kind.alternating else branch_conditions(conditions, kind.drops)
    ahead = modulation_ahead(model, schedule) if kind.student else model.modulate(schedule.times[:-1])

    def step(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, before = state
        modulation = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, i, 1, axis=1), ahead)

        def seen(conditions: Conditions) -> Conditions:
            return _speaker_scaled(conditions, schedule, i) if kind.speaker_scaled else conditions

        def guided(x: Array) -> Array:
            if branched is not None:
                return guided_velocity(model, x, modulation, seen(branched), schedule.scales)
            one, scale = _one_branch(conditions, kind.drops, schedule.scales, i)
            return guided_velocity(model, x, modulation, seen(one), scale)

        def plain(x: Array) -> Array:
            return model.velocity(x, modulation, seen(conditions))

        is_guided = (i >= schedule.guided_from) & (i < schedule.guided_to)
        velocity = lax.cond(is_guided, guided, plain, x) if kind.drops else plain(x)
        if kind.rescaled:
            velocity = rescaled(velocity, x, schedule.times[i], *schedule.rescale)
        slope = schedule.slopes[i] * (velocity - before)
        return x - (velocity + slope) * (schedule.times[i] - schedule.times[i + 1]), velocity

    return lax.fori_loop(jnp.int32(0), schedule.steps, step, (noise, jnp.zeros_like(noise)))[0]


def modulation_ahead(student: Any, schedule: Schedule) -> Any:
    """The modulation of a student at all steps, which also have lengths and the scale of guidance."""
    times, lengths = schedule.times[:-1], schedule.times[:-1] - schedule.times[1:]
    return student.modulate(times, lengths, jnp.broadcast_to(schedule.scales, times.shape))


def rescaled(
    velocity: Float[Array, "b t c"], x: Float[Array, "b t c"], t: Float[Any, ""], k: Any, s: Any
) -> Float[Array, "b t c"]:
    """Temporal score rescaling (arXiv 2510.01184).

    With snr = (1 - t)^2 / t^2 and ratio = (snr s^2 + 1) / (snr s^2 / k + 1):
    v <- (ratio ((1 - t) v + x) - x) / (1 - t). At t = 1 the ratio is 1 and v stays.
    """
    data = jnp.where(t < 1, 1 - t, 1.0)
    snr = jnp.square((1 - t) / jnp.maximum(t, 1e-6))
    ratio = (snr * s**2 + 1) / (snr * s**2 / k + 1)
    return jnp.where(t < 1, (ratio * (data * velocity + x) - x) / data, velocity)


def _one_branch(
    conditions: Conditions, drops: tuple[Drop, ...], scales: Float[Array, " k"], i: Int[Array, ""]
) -> tuple[Conditions, Float[Array, " 1"]]:
    """Rows [conditioned, branch i mod k], and that branch's scale."""
    turn = i % len(drops)
    doubled: Any = jax.tree.map(lambda leaf: jnp.tile(leaf, (1, 2, *[1] * (leaf.ndim - 2))), conditions)
    kept = ~jnp.asarray(drops)[turn]
    text, speaker = conditions.text_mask, conditions.speaker_mask
    masked = dataclasses.replace(
        doubled,
        text_mask=jnp.concatenate([text, text & kept[0]]),
        speaker_mask=jnp.concatenate([speaker, speaker & kept[1]]),
    )
    return masked, lax.dynamic_slice_in_dim(scales, turn, 1)


def _speaker_scaled(conditions: Any, schedule: Schedule, i: Int[Array, ""]) -> Any:
    """The conditions with the speaker's keys and values times the step's factor; the cached ones are not changed."""
    keys, values = conditions.speaker_keys, conditions.speaker_values
    first, others = schedule.speaker_kv[i]
    factor = jnp.where(jnp.arange(keys.shape[0]) < schedule.speaker_kv_layers, first, others)
    factor = factor.reshape(-1, *[1] * (keys.ndim - 1)).astype(keys.dtype)
    return dataclasses.replace(conditions, speaker_keys=keys * factor, speaker_values=values * factor)


def branch_conditions(conditions: Conditions, drops: tuple[Drop, ...]) -> Conditions:
    """Rows [conditioned, branch 1, branch 2, ...] over the same keys and values; branches differ in their masks.

    The branch that drops both conditions, always last, needs no rows here: see `BlockDiT.velocity`.
    """
    drops = tuple(drop for drop in drops if drop != (True, True))
    if not drops:
        return conditions
    rows = 1 + len(drops)
    tiled: Any = jax.tree.map(lambda leaf: jnp.tile(leaf, (1, rows, *[1] * (leaf.ndim - 2))), conditions)

    def masked(mask: Array, dropped: list[bool]) -> Array:
        return jnp.concatenate([mask] + [mask & (not drop) for drop in dropped])

    return dataclasses.replace(
        tiled,
        text_mask=masked(conditions.text_mask, [text for text, _ in drops]),
        speaker_mask=masked(conditions.speaker_mask, [speaker for _, speaker in drops]),
    )


def guided_velocity(
    model: VelocityModel,
    x: Float[Array, "b t c"],
    modulation: Any,
    branched: Conditions,
    scales: Float[Array, "k ..."],
) -> Float[Array, "b t c"]:
    """v_c + sum_k s_k (v_c - v_k), all branches in one batch of (1 + k) b rows; a scale may differ between rows."""
    rows = jnp.tile(x, (1 + len(scales), 1, 1))
    conditioned, *dropped = jnp.split(model.velocity(rows, modulation, branched), 1 + len(scales))
    return conditioned + sum(scale * (conditioned - v) for scale, v in zip(scales, dropped, strict=True))
