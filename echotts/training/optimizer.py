"""AdamW as published, or Muon: warm-up and cosine, decoupled decay with the published mask, clipping by global norm."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, Int

from echotts.config import OptimConfig
from echotts.model import Params, no_decay
from echotts.model.parameters import flatten, unflatten

MUON_RMS = 0.2  # of an update relative to the learning rate, as AdamW's (arXiv 2502.16982)
EMA_RAMP = 10  # lets the EMA forget its random start: at step s its decay is at most (1 + s) / (10 + s)


def learning_rate(step: Int[Array, ""], config: OptimConfig) -> Float[Array, ""]:
    """Linear from 0 over the first `warmup_share` of the steps; a half cosine to 0 over `decay_share` of the others.

    Between the two, if `decay_share` is less than the published 1, it is constant.
    """
    warmup = min(round(config.warmup_share * config.steps), config.steps - 1)
    rising = step / max(warmup, 1)
    falls = max(1, round(config.decay_share * (config.steps - warmup)))
    progress = jnp.clip((step - (config.steps - falls)) / falls, 0.0, 1.0)
    falling = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return config.learning_rate * jnp.where(step < warmup, rising, falling).astype(jnp.float32)


def decay_mask(params: Params) -> Params:
    """True where weight decay applies."""
    return unflatten({path: not no_decay(path) for path in flatten(params)})


def make_optimizer(config: OptimConfig, schedule: Any = None) -> optax.GradientTransformation:
    """Clipping, then AdamW or Muon. `schedule` (step -> rate, or a number) replaces warm-up and cosine.

    Muon (arXiv 2502.16982) has the same learning rate as AdamW: its updates are scaled to the size of AdamW's.
    """
    rate = schedule if schedule is not None else lambda step: learning_rate(jnp.asarray(step), config)
    if config.method == "muon":
        method = optax.contrib.muon(
            rate,
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=orthogonalised,
            consistent_rms=MUON_RMS,
        )
    else:
        method = optax.adamw(
            rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=decay_mask
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), method)


def orthogonalised(params: Any) -> Any:
    """For Muon: the matrix axes of kernels to which weight decay applies, layers being stacked; None for the rest."""

    def axes(path: str) -> optax.contrib.MuonDimensionNumbers | None:
        if no_decay(path) or not path.endswith("/kernel"):
            return None
        return optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)

    return unflatten({path: axes(path) for path in flatten(params)})


def update_average(average: Params, params: Params, step: Int[Array, ""], decay: float) -> Params:
    """The EMA after this step's update; `step` is the number of previous updates."""
    ramp = (1.0 + step) / (EMA_RAMP + step)
    weight = jnp.minimum(decay, ramp).astype(jnp.float32)
    return jax.tree.map(lambda old, new: weight * old + (1 - weight) * new, average, params)
