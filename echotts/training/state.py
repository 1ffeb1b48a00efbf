"""The training state and its initialisation, random or from given weights: abstract shapes, shardings, then one jit."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from echotts.checkpoint.adapters import VOICE, weights_hash
from echotts.checkpoint.agreement import differences
from echotts.checkpoint.digests import array_digests, json_digest
from echotts.checkpoint.facts import Facts
from echotts.checkpoint.weights import Adam, Weights, load_weights
from echotts.config import Config, to_dict
from echotts.latents import LatentScale
from echotts.model import Params, count_parameters
from echotts.model.parameters import flatten
from echotts.multihost.processes import check_same
from echotts.training import mesh as meshes
from echotts.training.optimizer import make_optimizer
from echotts.training.tuning import Base, fresh_params, place_frozen

LOGGER = logging.getLogger(__name__)

ADDED = {"lora": "adapters of", "duration": "a duration predictor for", "distil": "a student of"}
HOW_IT_COMPUTES = ("compute_dtype", "attention", "remat")  # keys of a model's configuration apart from its weights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a step changes. Leaves are arrays, or shapes and shardings in their place.

    `params` are the trained parameters (training/tuning.py), usually the whole model, in float32. `ema` has the same
    structure.
    """

    step: Any  # () int32, number of updates; never a Python int, which would cause recompilation
    params: Params
    ema: Params
    opt_state: Any

    def arrays(self) -> dict[str, Any]:
        """The parts that a checkpoint stores as arrays; the step is stored as a number beside them."""
        return {"params": self.params, "ema": self.ema, "opt_state": self.opt_state}


@functools.lru_cache(maxsize=2)  # used by step, initialisation and checkpoint
def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """The state as shapes (jax.ShapeDtypeStruct) with shardings; allocates nothing."""
    shapes = jax.eval_shape(lambda: _create(config, optimizer=make_optimizer(config.optim)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        meshes.shardings(shapes, mesh),
    )


def new_state(config: Config, mesh: Mesh, first_voice: Callable[[], np.ndarray]) -> tuple[TrainState, int, int]:
    """(state, step, samples seen) of a new run: from `run.init_from`, otherwise a random model from `run.seed`.

    Step and samples are 0 except with `run.resume_optimizer`. `first_voice` provides the (m, c) that an inversion
    starts from.
    """
    source, resume = config.run.init_from, config.run.resume_optimizer
    if config.tune.method == "inversion":
        return state_from_weights(Weights({VOICE: first_voice()}, config.model, Facts()), 0, config, mesh), 0, 0
    if source and not config.tune.is_frozen:
        weights = fitting_weights(source, config, resume)
        check_same(f"contents of {source}", json_digest(array_digests([weights.params, weights.adam])))
        step, samples_seen = (weights.facts.step or 0, weights.facts.samples_seen or 0) if resume else (0, 0)
        what = f"the optimizer state of step {step}, {samples_seen} samples, and " if resume else ""
        LOGGER.info("starting from %sthe weights of %s", what, source)
        return state_from_weights(weights, step, config, mesh), step, samples_seen
    state = initial_state(config, mesh)
    what = f"{ADDED[config.tune.method]} {source}" if config.tune.is_frozen else "a new model"
    LOGGER.info("%s of %.2f M parameters", what, count_parameters(state.params) / 1e6)
    return state, 0, 0


def fitting_weights(source: str, config: Config, with_optimizer: bool = False) -> Weights:
    """The weights of an export, a run or a published pickle; ValueError lists how they differ from the run's model.

    The kind of latent scale must be the same; its statistics may differ, since they belong to the data.
    """
    weights = load_weights(source, with_optimizer=with_optimizer)
    models = (weights.config, config.model)
    theirs, ours = ({k: v for k, v in to_dict(c).items() if k not in HOW_IT_COMPUTES} for c in models)
    if lines := differences(theirs, ours):
        raise ValueError(
            f"{source}: weights of another model: {'; '.join(f'model.{line}' for line in lines)} "
            "(theirs -> this run's); set the model's sizes to theirs"
        )
    scale = LatentScale.from_json(weights.facts.latent_scale, weights.config.latent_channels).name
    if scale != config.data.latent_scale:
        raise ValueError(
            f"{source}: weights for another latent scale: data.latent_scale: {scale} -> {config.data.latent_scale} "
            f"(theirs -> this run's); use --data.latent_scale {scale}"
        )
    return weights


def load_base(config: Config, mesh: Mesh) -> Base:
    """The frozen weights of `run.init_from`; none if all weights are trained. ValueError if they do not fit."""
    source = config.run.init_from
    if not config.tune.is_frozen or source is None:
        return Base({}, None)
    weights = fitting_weights(source, config)
    found = weights_hash(weights.params)
    check_same(f"contents of {source}", found)
    return Base(place_frozen(weights.params, config, mesh), found)


def initial_state(config: Config, mesh: Mesh) -> TrainState:
    """The state before step 1: random parameters from `run.seed`, created with their shardings."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    create = jax.jit(lambda: _create(config, optimizer=make_optimizer(config.optim)), out_shardings=shardings)
    return create()


def state_from_weights(weights: Weights, step: int, config: Config, mesh: Mesh) -> TrainState:
    """The state after `step` steps: given parameters, an EMA that starts there, their optimizer state or a new one."""
    target = abstract_state(config, mesh)
    wanted, given = flatten(target.params), flatten(weights.params)
    for path in sorted(wanted.keys() | given.keys()):
        found = tuple(given[path].shape) if path in given else None
        needed = tuple(wanted[path].shape) if path in wanted else None
        if found != needed:
            raise ValueError(f"{path}: the given weights have shape {found}, but the model needs {needed}")
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    optimizer = make_optimizer(config.optim)

    def begin(params: Params, adam: Adam | None) -> TrainState:
        state = _begin(params, optimizer)
        if adam is not None:
            opt_state = optax.tree.set(state.opt_state, count=jnp.int32(adam.count), mu=adam.mu, nu=adam.nu)
            state = dataclasses.replace(state, opt_state=opt_state)
        return dataclasses.replace(state, step=jnp.int32(step))

    def float32(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)

    adam = weights.adam and Adam(weights.adam.count, float32(weights.adam.mu), float32(weights.adam.nu))
    return jax.jit(begin, out_shardings=shardings)(float32(weights.params), adam)


def restored_state(arrays: dict[str, Any], step: int, mesh: Mesh) -> TrainState:
    """The state from a checkpoint's arrays; the step becomes an int32 array again."""
    return TrainState(step=jax.device_put(jnp.int32(step), meshes.replicated(mesh)), **arrays)


def _create(config: Config, optimizer: optax.GradientTransformation) -> TrainState:
    return _begin(fresh_params(config), optimizer)


def _begin(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    # the EMA is a copy: both are donated together and must not share a buffer
    average = jax.tree.map(jnp.copy, params)
    return TrainState(step=jnp.int32(0), params=params, ema=average, opt_state=optimizer.init(params))
