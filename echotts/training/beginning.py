"""The state before step 1: random, or of given weights. A run begins there, and may go back there."""

import logging

from jax.sharding import Mesh

from echotts.config import Config, ModelConfig, to_dict
from echotts.model import Params, count_parameters
from echotts.training.agreement import differences
from echotts.training.export import load_weights
from echotts.training.state import TrainState, initial_state, state_from_params

LOGGER = logging.getLogger(__name__)

HOW_IT_COMPUTES = ("compute_dtype", "attention", "remat")  # of a model's configuration: not properties of its weights


def new_state(config: Config, mesh: Mesh) -> TrainState:
    """The weights of `run.init_from`, else a random model, the same each time: `run.seed` decides."""
    if config.run.init_from:
        params = fitting_weights(config.run.init_from, config.model)
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
