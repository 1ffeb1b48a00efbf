"""How a run begins: its directory, and a state that is new, taken from other weights, or resumed."""

import dataclasses
import json
import logging
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from echotts.checkpoint.checkpoints import Checkpoints
from echotts.checkpoint.contents import Meta
from echotts.checkpoint.guard import Guard
from echotts.config import Config, to_dict
from echotts.data.stream.stream import Stream, merge_states
from echotts.latents import FACT
from echotts.multihost import messages, runtime
from echotts.rundir.layout import CONFIG
from echotts.rundir.location import RunPath, write_whole
from echotts.training.feed import Fed
from echotts.training.inputs import Inputs, store_pins
from echotts.training.state import TrainState, abstract_state, new_state, restored_state

REPLAYED_SAMPLES = 100_000  # about a minute of reading
LOGGER = logging.getLogger(__name__)


def write_config(run_dir: RunPath, config: Config) -> None:
    """Leaves the resolved configuration in the run directory, once it is known that the run goes on with it."""
    if runtime.is_primary():
        write_whole(run_dir / CONFIG, json.dumps(to_dict(config), indent=1) + "\n")


def begin(
    config: Config, mesh: Mesh, checkpoints: Checkpoints, inputs: Inputs
) -> tuple[TrainState, int, int, int, Guard]:
    """(state, step, samples seen, frames of speech seen, what is known of bad steps) to begin with.

    That is the newest checkpoint, else what `run.init_from` holds, else a random model.
    A resumed stream continues after the last batch that was trained on.
    """
    restored = checkpoints.restore(abstract_state(config, mesh).arrays(), to_dict(config))
    if restored is not None:
        arrays, meta = restored
        check_facts(meta.facts, inputs.facts, config.data.data)
        inputs.stream.restore(meta.stream)
        store_pins(config, inputs)
        LOGGER.info("resuming after step %d, %d samples", meta.step, meta.samples_seen)
        if meta.step >= config.optim.steps:
            LOGGER.warning(
                "%s is at step %d already and --steps is %d: nothing is trained; give more steps to go on",
                *(config.run.run_dir, meta.step, config.optim.steps),
            )
        guard = Guard(config.run, meta.guard)
        return restored_state(arrays, meta.step, mesh), meta.step, meta.samples_seen, meta.frames_seen, guard
    store_pins(config, inputs)
    state, step, samples_seen = new_state(config, mesh)
    return state, step, samples_seen, skip_batches(inputs.stream, step, samples_seen), Guard(config.run)


def skip_batches(stream: Stream, steps: int, samples_seen: int) -> int:
    """Reads past the batches of the steps before, as far as REPLAYED_SAMPLES; returns the frames of speech in them.

    What was trained on elsewhere, and more of it than that, tells nothing of these data: they begin at their beginning.
    """
    if samples_seen > REPLAYED_SAMPLES:
        LOGGER.warning(
            "%d samples were seen before, more than the %d that are read again to find the place in the data: "
            "the data begin anew",
            *(samples_seen, REPLAYED_SAMPLES),
        )
        return 0
    batches = (stream.next()[0] for _ in range(steps))
    return sum(int(np.sum(batch.latent_mask)) for batch in batches) * jax.process_count()


def roll_back(
    guard: Guard, state: TrainState, step: int, config: Config, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[TrainState, str]:
    """The state of an earlier checkpoint, to go on with after `step`, and what was done (`Guard.roll_back`)."""

    def restore(before: int) -> tuple[dict[str, Any], Meta] | None:
        return checkpoints.restore(abstract_state(config, mesh).arrays(), to_dict(config), before=before)

    arrays, what = guard.roll_back(state, step, checkpoints, restore, lambda: new_state(config, mesh)[0].arrays())
    return restored_state(arrays, step, mesh), what


def check_facts(saved: dict[str, Any], given: dict[str, Any], data: str) -> None:
    """ValueError where a run is resumed on latents of another codec or with another tokenizer."""
    before, now = saved["codec"]["weights_hash"], given["codec"]["weights_hash"]
    if before != now:
        raise ValueError(f"{data}: latents of the codec with hash {now}, the run was trained on those of {before}")
    if saved["tokenizer"] != given["tokenizer"]:
        raise ValueError("the tokenizer is not the one the run was trained with: give that one, or another --run_dir")
    if saved.get(FACT) != given.get(FACT):
        raise ValueError(
            f"{data}: mean and standard deviation of the latents are not those the run was trained with: give the data "
            "it was trained on, or another --run_dir"
        )


def bookmark(config: Config, inputs: Inputs, step: int, samples_seen: int, fed: Fed) -> Meta:
    """What the checkpoint after this batch says beside its arrays."""
    return Meta(
        step=step,
        samples_seen=samples_seen,
        stream=fed.stream_state,
        config=to_dict(config),
        facts=inputs.facts,
        frames_seen=fed.frames_seen,
    )


def for_checkpoint(here: Meta, guard: Guard) -> Meta:
    """The bookmark as it is stored, with the streams of all processes; they call it together."""
    here = dataclasses.replace(here, guard=guard.state())
    states = messages.gather(f"stream/{here.step}", here.stream)
    return dataclasses.replace(here, stream=merge_states(states)) if states else here  # process 0 writes it
