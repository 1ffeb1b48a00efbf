"""AdamW as published: warm-up and cosine, decoupled decay with the published mask, clipping by global norm."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from echotts.config import OptimConfig
from echotts.model import Params, no_decay
from echotts.model.parameters import flatten, unflatten

EMA_RAMP = 10  # lets the EMA forget its random start: at step s its decay is at most (1 + s) / (10 + s)


def learning_rate(step: Int[Array, ""], config: OptimConfig) -> Float[Array, ""]:
    """Linear from 0 over the first `warmup_share` of the steps, then a half cosine down to 0 at the last step."""
    warmup = min(round(config.warmup_share * config.steps), config.steps - 1)
    rising = step / max(warmup, 1)
    progress = jnp.clip((step - warmup) / (config.steps - warmup), 0.0, 1.0)
    falling = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return config.learning_rate * jnp.where(step < warmup, rising, falling).astype(jnp.float32)


def decay_mask(params: Params) -> Params:
    """True where weight decay applies."""
    return unflatten({path: not no_decay(path) for path in flatten(params)})


def make_optimizer(config: OptimConfig, schedule: Any = None) -> optax.GradientTransformation:
    """Clipping, then AdamW. `schedule` (step -> rate, or a number) replaces warm-up and cosine."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule if schedule is not None else lambda step: learning_rate(jnp.asarray(step), config),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )


def update_average(average: Params, params: Params, step: Int[Array, ""], decay: float) -> Params:
    """The EMA after this step's update; `step` is the number of previous updates."""
    ramp = (1.0 + step) / (EMA_RAMP + step)
    weight = jnp.minimum(decay, ramp).astype(jnp.float32)
    return jax.tree.map(lambda old, new: weight * old + (1 - weight) * new, average, params)
