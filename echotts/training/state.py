"""The training state and how it begins: random or from given weights. Abstract shapes, then shardings, then one jit."""

import functools
import logging
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from echotts.checkpoint.agreement import differences
from echotts.checkpoint.digests import array_digests, json_digest
from echotts.checkpoint.export import load_weights
from echotts.config import Config, ModelConfig, to_dict
from echotts.model import BlockDiT, Params, count_parameters, scale_to_fan_in, split
from echotts.model.parameters import flatten
from echotts.multihost.processes import check_same
from echotts.seeds import random_key
from echotts.training import mesh as meshes
from echotts.training.optimizer import make_optimizer

LOGGER = logging.getLogger(__name__)

HOW_IT_COMPUTES = ("compute_dtype", "attention", "remat")  # of a model's configuration: not properties of its weights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a step changes. Leaves are arrays, or the shapes and shardings that stand for them.

    Masters are float32. `ema` has the structure of `params`.
    """

    step: Any  # () int32: updates made; never a Python int, which would compile again
    params: Params
    ema: Params
    opt_state: Any

    def arrays(self) -> dict[str, Any]:
        """The parts a checkpoint stores as arrays; the step is stored as a number beside them."""
        return {"params": self.params, "ema": self.ema, "opt_state": self.opt_state}


@functools.lru_cache(maxsize=2)  # the step, the start and the checkpoint ask for the same one
def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """The state as shapes (jax.ShapeDtypeStruct), each with its sharding; allocates nothing."""
    shapes = jax.eval_shape(lambda: _create(config, optimizer=make_optimizer(config.optim)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        meshes.shardings(shapes, mesh),
    )


def new_state(config: Config, mesh: Mesh) -> TrainState:
    """The weights of `run.init_from`, else a random model, the same each time: `run.seed` decides."""
    if config.run.init_from:
        params = fitting_weights(config.run.init_from, config.model)
        check_same(f"weights of {config.run.init_from}", json_digest(array_digests(params)))
        LOGGER.info("starting from the weights of %s", config.run.init_from)
        return state_from_params(params, config, mesh)
    state = initial_state(config, mesh)
    LOGGER.info("a new model of %.2f M parameters", count_parameters(state.params) / 1e6)
    return state


def fitting_weights(source: str, model: ModelConfig) -> Params:
    """The weights of an export, a run or a published pickle; ValueError lists in what they do not fit the model."""
    weights = load_weights(source)
    theirs, ours = ({k: v for k, v in to_dict(c).items() if k not in HOW_IT_COMPUTES} for c in (weights.config, model))
    if lines := differences(theirs, ours):
        raise ValueError(
            f"{source}: weights of another model: {'; '.join(f'model.{line}' for line in lines)} "
            "(theirs -> this run's); change the model's sizes to theirs"
        )
    return weights.params


def initial_state(config: Config, mesh: Mesh) -> TrainState:
    """The state before step 1: random parameters from `run.seed`, made where they will live."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    create = jax.jit(lambda: _create(config, optimizer=make_optimizer(config.optim)), out_shardings=shardings)
    return create()


def state_from_params(params: Params, config: Config, mesh: Mesh) -> TrainState:
    """The state before step 1 of fine-tuning: given parameters, a new optimizer, an average that starts there."""
    target = abstract_state(config, mesh)
    wanted, given = flatten(target.params), flatten(params)
    for path in sorted(wanted.keys() | given.keys()):
        found = tuple(given[path].shape) if path in given else None
        needed = tuple(wanted[path].shape) if path in wanted else None
        if found != needed:
            raise ValueError(f"{path}: the given weights have shape {found}, the model needs {needed}")
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    optimizer = make_optimizer(config.optim)
    return jax.jit(lambda given: _begin(given, optimizer), out_shardings=shardings)(params)


def restored_state(arrays: dict[str, Any], step: int, mesh: Mesh) -> TrainState:
    """The state a checkpoint holds; the step becomes an int32 array again."""
    return TrainState(step=jax.device_put(jnp.int32(step), meshes.replicated(mesh)), **arrays)


def _create(config: Config, optimizer: optax.GradientTransformation) -> TrainState:
    params = split(BlockDiT(config.model, rngs=nnx.Rngs(random_key(config.run.seed))))[1]
    return _begin(scale_to_fan_in(params) if config.optim.init == "fan_in" else params, optimizer)


def _begin(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    # the average is a copy: the two are donated together and must not share a buffer
    average = jax.tree.map(jnp.copy, params)
    return TrainState(step=jnp.int32(0), params=params, ema=average, opt_state=optimizer.init(params))
