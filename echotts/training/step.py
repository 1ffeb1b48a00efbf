"""The training step and the held-out evaluation step, as pure jitted functions of state and batch."""

import math
import time
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from echotts.config import Config
from echotts.data.stream.batch import Batch
from echotts.flow.distillation import distance, distillation_loss, draw_steps
from echotts.flow.matching import condition_dropout, flow_loss, stratified_timesteps, velocity_loss
from echotts.model import Params
from echotts.model.duration import predict_frames
from echotts.seeds import random_key
from echotts.training import mesh as meshes
from echotts.training.optimizer import learning_rate, make_optimizer, update_average
from echotts.training.state import TrainState, abstract_state
from echotts.training.tuning import (
    abstract_frozen,
    duration_loss,
    guided_sampler,
    make_assemble,
    make_teacher,
    with_voice,
)

Metrics = dict[str, Array]
TERMS = ("flow", "alignment")  # of the loss
TPU_OPTIONS = {  # part of the step, so that `plan` has them too; one that libtpu does not know is an error
    # No windowed einsum: over 32 chips each piece of a weight has 32 or 48 rows, but the matrix unit needs 128.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # Gather a weight while the preceding products run, in the same fusions ...
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",  # ... in several if one is too short
    "xla_tpu_overlap_compute_collective_tc": "true",
}
MeasureStep = Callable[[Params, Params, Batch, Array], Metrics]


class TrainStep:
    """The jitted step. Counts its compilations: there should be one per bucket."""

    def __init__(self, jitted: Any, frozen: Params):
        self.jitted = jitted
        self.frozen = frozen
        self.compile_s = 0.0

    @property
    def compilations(self) -> int:
        """Number of shapes it has been compiled for."""
        return self.jitted._cache_size()

    def __call__(self, state: TrainState, batch: Batch, limit: float = math.inf) -> tuple[TrainState, Metrics]:
        """Launches one step and returns immediately, unless the batch's bucket has to be compiled first."""
        before, began = self.compilations, time.perf_counter()
        result = self.jitted(state, batch, np.float32(limit), self.frozen)
        if self.compilations != before:
            self.compile_s += time.perf_counter() - began
        return result


def make_train_step(config: Config, mesh: Mesh, frozen: Params | None = None) -> TrainStep:
    """The step (state, global batch, limit) -> (state, metrics). The state is donated: rebind its name.

    `frozen` are the weights that are used but not trained (training/tuning.py); None: none.
    Metrics are arrays on the device: "loss", "error" (), the mean squared error of the rows regardless of padding,
    "grad_norm", "param_norm", "learning_rate" (), "valid_share" (), "finite" and "good" () bool and "row_loss" (b,).
    A step that is not good (a non-finite number, or an error above the limit) changes nothing but the step number
    (checkpoint/guard.py). Compiles once per bucket.
    """
    assemble, teacher = make_assemble(config, mesh), make_teacher(config, mesh)
    rows = config.data.batch_size
    parts = config.optim.accumulation
    meshes.check_batch(rows // parts, mesh)

    def train_step(state: TrainState, batch: Batch, limit: Array, frozen: Params) -> tuple[TrainState, Metrics]:
        # all draws depend only on (seed, step) over the global batch, regardless of sharding and accumulation
        key = jax.random.fold_in(random_key(config.run.seed), state.step)
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        t: Any = stratified_timesteps(time_key, rows, config.flow)
        if teacher is not None:
            t = draw_steps(time_key, rows, parts, config.tune.scales)
        noise = jax.random.normal(noise_key, batch.latent.shape)
        batch = condition_dropout(dropout_key, with_voice(config, batch), config.flow)

        alignment = alignment_weight(state.step, config)

        def part_loss(params: Params, batch: Batch, t: Any, noise: Array) -> tuple[Array, Metrics]:
            model, batch = assemble(params, frozen, batch)
            if teacher is not None:
                average, _ = assemble(state.ema, frozen, batch)
                given = (batch, t, noise, config.tune.interval, config.flow.loss)
                return distillation_loss(model, average, teacher(frozen), *given)
            if config.tune.method == "duration":
                return duration_loss(predict_frames(params, model, *conditions_of(batch)), batch)
            velocity = model if alignment is None else model.with_alignment
            return velocity_loss(velocity, batch, t, noise, config.flow.loss, alignment)

        terms, row_loss, grads = mean_gradients(part_loss, state.params, (batch, t, noise), parts)
        grad_norm = optax.tree.norm(grads)
        error = jnp.sum(row_loss) / jnp.maximum(jnp.sum(batch.latent_mask.any(axis=1)), 1)
        finite = jnp.isfinite(terms["flow"]) & jnp.isfinite(terms["alignment"]) & jnp.isfinite(grad_norm)
        good = finite & (error <= limit)

        rate = learning_rate(state.step, config.optim)  # by step, because the optimizer does not count rejected steps
        optimizer = make_optimizer(config.optim, schedule=lambda _: rate)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
        ema = update_average(state.ema, params, state.step, config.optim.ema_decay)
        params, ema, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, ema, opt_state),
            (state.params, state.ema, state.opt_state),
        )
        metrics = {
            "loss": terms["flow"],
            "error": error,
            "row_loss": row_loss,
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(params),
            "learning_rate": rate,
            "valid_share": jnp.mean(batch.latent_mask, dtype=jnp.float32),
            "finite": finite,
            "good": good,
        } | ({} if alignment is None else {"alignment": terms["alignment"]})
        return TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), metrics

    shardings, unchanged = jax.tree.map(
        lambda leaf: leaf.sharding, (abstract_state(config, mesh), abstract_frozen(config, mesh))
    )
    jitted = jax.jit(
        train_step,
        in_shardings=(shardings, meshes.batch_sharding(mesh), meshes.replicated(mesh), unchanged),
        out_shardings=(shardings, meshes.replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )
    return TrainStep(jitted, frozen or {})


def make_measure_step(config: Config, mesh: Mesh) -> MeasureStep:
    """The jitted held-out loss (params, frozen, batch, key) -> {"row_loss", "t", "kept" (b,), "loss", "weight"}.

    Conditions are not dropped. The key determines times and noise; durations and the distance of a student from its
    teacher depend on no time, and have no "t".
    """
    assemble, teacher = make_assemble(config, mesh), make_teacher(config, mesh)

    def measure(params: Params, frozen: Params, batch: Batch, key: Key[Array, ""]) -> Metrics:
        model, batch = assemble(params, frozen, with_voice(config, batch))
        if config.tune.method == "duration":
            loss, aux = duration_loss(predict_frames(params, model, *conditions_of(batch)), batch)
            return aux | {"loss": loss}
        if teacher is not None:
            noise = jax.random.normal(key, batch.latent.shape)
            loss, aux = distance(model, teacher(frozen), batch, noise, guided_sampler(config.tune), config.flow.loss)
            return aux | {"loss": loss}
        loss, aux = flow_loss(model, batch, key, config.flow, train=False)
        return aux | {"loss": loss}

    return jax.jit(measure, out_shardings=meshes.replicated(mesh))


def alignment_weight(step: Array, config: Config) -> Array | None:
    """The weight of the alignment loss: `flow.alignment`, linearly down to 0 at `flow.alignment_share` of the steps."""
    if not config.flow.alignment:
        return None
    return config.flow.alignment * jnp.maximum(0.0, 1.0 - step / (config.flow.alignment_share * config.optim.steps))


def conditions_of(batch: Batch) -> tuple[Any, Any, Any, Any]:
    """The text and the reference of each row, as the encoders take them."""
    return batch.text_ids, batch.text_mask, batch.speaker_latent, batch.speaker_mask


def mean_gradients(
    loss_fn: Callable[..., Any], params: Params, inputs: Any, parts: int
) -> tuple[Metrics, Array, Params]:
    """(terms, row_loss, gradients) of the whole batch, computed in `parts` equal parts one after the other.

    Parts are weighted as `velocity_loss` requires, so the result is that of the undivided batch. Part i takes rows
    i, i + parts, ..., so each device keeps its rows. The terms are those of the loss, "flow" and "alignment".
    """
    gradient = jax.grad(loss_fn, has_aux=True)

    def of_part(part: Any) -> tuple[Array, Metrics, Array, Params]:
        grads, aux = gradient(params, *part)
        return aux["weight"], {name: aux[name] for name in TERMS}, aux["row_loss"], grads

    if parts == 1:
        return of_part(inputs)[1:]

    def deal(x: Array) -> Array:
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, part: Any) -> tuple[Any, Array]:
        weight, terms, row_loss, grads = of_part(part)
        weighted = jax.tree.map(lambda x: weight * x, (jnp.float32(1), terms, grads))
        return jax.tree.map(jnp.add, total, weighted), row_loss

    nothing = (jnp.float32(0), dict.fromkeys(TERMS, jnp.float32(0)), jax.tree.map(jnp.zeros_like, params))
    (weight, terms, grads), row_loss = jax.lax.scan(add, nothing, jax.tree.map(deal, inputs))
    terms, grads = jax.tree.map(lambda x: x / weight, (terms, grads))
    return terms, row_loss.swapaxes(0, 1).reshape(-1), grads


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Options for programs on the mesh's platform; None except on a TPU."""
    return dict(TPU_OPTIONS) if mesh.devices.flat[0].platform == "tpu" else None
