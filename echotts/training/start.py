"""The state in which a run starts or goes on: of a checkpoint, of given weights, or new; and back to earlier ones."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from echotts.checkpoint.best import Best
from echotts.checkpoint.checkpoints import Checkpoints
from echotts.checkpoint.contents import Meta
from echotts.checkpoint.facts import Facts
from echotts.checkpoint.guard import Guard
from echotts.config import Config, to_dict
from echotts.data.stream.stream import Stream
from echotts.training.inputs import Inputs, store_pins
from echotts.training.state import TrainState, abstract_state, new_state, restored_state

REPLAYED_SAMPLES = 100_000  # takes about a minute to read
LOGGER = logging.getLogger(__name__)


def begin(
    config: Config, mesh: Mesh, checkpoints: Checkpoints, inputs: Inputs
) -> tuple[TrainState, int, int, int, Guard, Best]:
    """(state, step, samples seen, frames of speech seen, guard, best evaluation) to start with.

    Taken from the newest checkpoint, otherwise from `run.init_from`, otherwise a random model. A resumed stream
    continues after the last batch that was trained on.
    """
    restored = checkpoints.restore(abstract_state(config, mesh).arrays(), to_dict(config))
    if restored is not None:
        arrays, meta = restored
        check_facts(meta.facts, inputs.facts, config.data.data)
        inputs.stream.restore(meta.stream, config.run.accept_changed_data)
        store_pins(config, inputs)
        LOGGER.info("resuming after step %d, %d samples", meta.step, meta.samples_seen)
        if meta.step >= config.optim.steps:
            LOGGER.warning(
                "%s is already at step %d and --steps is %d: nothing to train; increase --steps to continue",
                *(config.run.run_dir, meta.step, config.optim.steps),
            )
        guard, best = Guard(config.run, meta.guard), Best(**meta.best)
        return restored_state(arrays, meta.step, mesh), meta.step, meta.samples_seen, meta.frames_seen, guard, best
    store_pins(config, inputs)
    state, step, samples_seen = new_state(config, mesh, inputs.first_voice)
    return state, step, samples_seen, skip_batches(inputs.stream, step, samples_seen), Guard(config.run), Best()


def roll_back(
    guard: Guard,
    state: TrainState,
    step: int,
    config: Config,
    mesh: Mesh,
    checkpoints: Checkpoints,
    first_voice: Callable[[], np.ndarray],
) -> tuple[TrainState, str]:
    """The state of an earlier checkpoint, to continue with after `step`, and a description (`Guard.roll_back`)."""

    def restore(before: int) -> tuple[dict[str, Any], Meta] | None:
        return checkpoints.restore(abstract_state(config, mesh).arrays(), to_dict(config), before=before)

    def begin_again() -> dict[str, Any]:
        return new_state(config, mesh, first_voice)[0].arrays()

    arrays, what = guard.roll_back(state, step, checkpoints, restore, begin_again)
    return restored_state(arrays, step, mesh), what


def skip_batches(stream: Stream, steps: int, samples_seen: int) -> int:
    """Reads past the batches of earlier steps, up to REPLAYED_SAMPLES; returns the frames of speech in them.

    After more samples than that, presumably on other data, the data start from the beginning.
    """
    if samples_seen > REPLAYED_SAMPLES:
        LOGGER.warning(
            "%d samples were seen before, more than the %d that would be replayed to find the position in the data: "
            "the data start from the beginning",
            *(samples_seen, REPLAYED_SAMPLES),
        )
        return 0
    batches = (stream.next()[0] for _ in range(steps))
    return sum(int(np.sum(batch.latent_mask)) for batch in batches) * jax.process_count()


def check_facts(saved: Facts, given: Facts, data: str) -> None:
    """ValueError if a run is resumed on latents of another codec, with another tokenizer or another frozen base."""
    if saved.base != given.base:
        raise ValueError(
            f"the frozen weights have hash {(given.base or 'none')[:12]}, but the run was trained with those of "
            f"{(saved.base or 'none')[:12]}: give the same --init_from, or another --run_dir"
        )
    before, now = saved.codec.weights_hash, given.codec.weights_hash
    if before != now:
        raise ValueError(f"{data}: latents of the codec with hash {now}, but the run was trained on those of {before}")
    if saved.tokenizer != given.tokenizer:
        raise ValueError(
            "the tokenizer differs from the one the run was trained with: use that one, or another --run_dir"
        )
    if saved.latent_scale != given.latent_scale:
        raise ValueError(
            f"{data}: mean and standard deviation of the latents differ from those the run was trained with: use the "
            "data it was trained on, or another --run_dir"
        )
