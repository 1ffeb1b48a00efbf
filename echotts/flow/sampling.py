"""Sampling: Euler steps from noise (t = 1) to data (t = 0) with classifier-free guidance.

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

EVERY_T = (0.0, 1.0)
STEPS_LIMIT = 1024  # the modulation of all steps is held in memory
STEPS_ROUNDED = 32  # one compiled loop serves up to 32 steps, the next one up to 64
GUIDANCE_INTERVAL = (0.5, 1.0)  # guidance matters early, at high noise; later steps need only one row

Drop = tuple[bool, bool]  # (text, speaker): the conditions that a guidance branch drops


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


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How noise becomes latents. Every number is an argument of the compiled sampler, none a compile-time constant.

    `cfg_scale` guides jointly. `text_scale` or `speaker_scale` guide independently instead (a missing one is 0).
    Guidance is applied for interval[0] <= t <= interval[1]; other steps run one row per sample. By default joint
    guidance is applied at every t, as published, and independent guidance within GUIDANCE_INTERVAL, as in Echo.
    `time_scale` multiplies the time grid (Echo: 0.999); `truncation` multiplies the initial noise (Echo: 0.8 to 1).
    """

    steps: int = 32
    cfg_scale: float = 3.0
    text_scale: float | None = None
    speaker_scale: float | None = None
    interval: tuple[float, float] | None = None
    time_scale: float = 1.0
    truncation: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= STEPS_LIMIT:
            raise ValueError(f"sampler steps {self.steps} must be from 1 to {STEPS_LIMIT:,}")
        low, high = self.guided
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance interval {low}..{high} must be within 0..1, the lower end first")
        if not 0 < self.time_scale <= 1:
            raise ValueError(f"time_scale {self.time_scale} must be above 0 and at most 1")
        numbers = (*self.branches.values(), self.truncation)
        if not np.isfinite(numbers).all():
            raise ValueError(f"guidance scales and truncation must be finite numbers: {numbers}")

    @property
    def independent(self) -> bool:
        """Whether text and speaker are guided separately."""
        return self.text_scale is not None or self.speaker_scale is not None

    @property
    def guided(self) -> tuple[float, float]:
        """The range of times in which guidance is applied."""
        return self.interval or (GUIDANCE_INTERVAL if self.independent else EVERY_T)

    @property
    def branches(self) -> dict[Drop, float]:
        """The conditions that each guidance branch drops, and its scale; branches of scale 0 are omitted."""
        scales = (
            {(True, False): self.text_scale or 0.0, (False, True): self.speaker_scale or 0.0}
            if self.independent
            else {(True, True): self.cfg_scale}
        )
        return {drop: scale for drop, scale in scales.items() if scale != 0}

    @property
    def guided_steps(self) -> tuple[int, int]:
        """The first guided step and the one after the last."""
        times = self.time_scale * (1 - np.arange(self.steps) / self.steps)
        low, high = self.guided
        inside = np.flatnonzero((times >= low - 1e-9) & (times <= high + 1e-9))
        return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Schedule:
    """SamplerConfig as arrays: the traced arguments of the compiled loop."""

    scales: Any  # (branches,) float32
    times: Any  # (n + 1,) float32, n: steps rounded up; t_i = time_scale * (1 - i / steps), zeros at the end
    steps: Any  # () int32, like the next two
    guided_from: Any
    guided_to: Any

    @classmethod
    def of(cls, config: SamplerConfig) -> "Schedule":
        first, end = config.guided_steps
        indices = np.arange(config.steps + -config.steps % STEPS_ROUNDED + 1, dtype=np.float32)
        grid = np.float32(config.time_scale) * (1 - indices / np.float32(config.steps))
        return cls(
            scales=np.asarray(list(config.branches.values()), np.float32),
            times=np.maximum(grid, 0),
            steps=np.int32(config.steps),
            guided_from=np.int32(first),
            guided_to=np.int32(end),
        )


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
    """Latents from noise. Compiled once per shape, kind of guidance (joint, independent, none) and 32 steps."""
    return _sample(
        model, conditions, noise * np.float32(config.truncation), Schedule.of(config), drops=tuple(config.branches)
    )


def lower_sample(model: VelocityModel, conditions: Conditions, noise: Any, config: SamplerConfig) -> Any:
    """The lowered program of `sample` for arguments that may be mere shapes (jax.ShapeDtypeStruct); nothing is run."""
    return _sample.lower(model, conditions, noise, Schedule.of(config), drops=tuple(config.branches))


@functools.partial(jax.jit, static_argnames="drops")
def _sample(
    model: VelocityModel,
    conditions: Conditions,
    noise: Float[Array, "b t c"],
    schedule: Schedule,
    *,
    drops: tuple[Drop, ...],
) -> Float[Array, "b t c"]:
    branched = branch_conditions(conditions, drops)

    ahead = model.modulate(schedule.times[:-1])

    def step(i: Array, x: Array) -> Array:
        modulation = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, i, 1, axis=1), ahead)

        def guided(x: Array) -> Array:
            return guided_velocity(model, x, modulation, branched, schedule.scales)

        def plain(x: Array) -> Array:
            return model.velocity(x, modulation, conditions)

        is_guided = (i >= schedule.guided_from) & (i < schedule.guided_to)
        velocity = lax.cond(is_guided, guided, plain, x) if drops else plain(x)
        return x - velocity * (schedule.times[i] - schedule.times[i + 1])

    return lax.fori_loop(jnp.int32(0), schedule.steps, step, noise)


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
    scales: Float[Array, " k"],
) -> Float[Array, "b t c"]:
    """v_c + sum_k s_k (v_c - v_k), all branches in one batch of (1 + k) b rows."""
    rows = jnp.tile(x, (1 + len(scales), 1, 1))
    conditioned, *dropped = jnp.split(model.velocity(rows, modulation, branched), 1 + len(scales))
    return conditioned + sum(scale * (conditioned - v) for scale, v in zip(scales, dropped, strict=True))
