"""What a run trains (config.tune): all weights, or beside frozen ones adapters, one voice, a duration predictor or a
student.

The state holds only what is trained, so optimizer, EMA and checkpoints are as small as that. Frozen weights are an
argument of the compiled step, stored in the dtype in which they are used.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from echotts.checkpoint.adapters import VOICE
from echotts.checkpoint.facts import Facts, StudentFacts
from echotts.checkpoint.weights import read_about
from echotts.config import Config, TuneConfig
from echotts.data.stream.batch import Batch
from echotts.flow.options import SMALLEST_STEPS, SamplerConfig
from echotts.latents import LatentScale
from echotts.model import BlockDiT, Params, computed_with, merge, scale_to_fan_in, split
from echotts.model.adapters import create_adapters, merge_adapters, with_adapters
from echotts.model.duration import create_duration
from echotts.model.parameters import expected_shapes, unflatten, zeros
from echotts.model.student import create_student
from echotts.seeds import random_key
from echotts.text.tokens import BYTES
from echotts.training import mesh as meshes

Assemble = Callable[[Params, Params, Batch], tuple[BlockDiT, Batch]]
"""(trained parameters, frozen parameters, batch) -> the model, and the batch that it is applied to."""


@dataclass(frozen=True)
class Base:
    """Frozen weights on the devices, and the hash that identifies them; none if all weights are trained."""

    params: Params
    weights_hash: str | None


def fresh_params(config: Config) -> Params:
    """The trained parameters before step 1, from `run.seed`; traceable. The voice of an inversion is still zero."""
    key = random_key(config.run.seed)
    if config.tune.method == "lora":
        return create_adapters(config.model, config.tune.rank, key)
    if config.tune.method == "inversion":
        return {VOICE: jnp.zeros((config.data.reference_frames, config.model.latent_channels))}
    if config.tune.method == "duration":
        return create_duration(config.model, key)
    if config.tune.method == "distil":
        return create_student(config.model, config.tune.rank, key)
    params = split(BlockDiT(config.model, rngs=nnx.Rngs(key)))[1]
    return scale_to_fan_in(params) if config.optim.init == "fan_in" else params


def abstract_frozen(config: Config, mesh: Mesh) -> Params:
    """The frozen parameters as shapes with shardings; empty if all are trained."""
    if not config.tune.is_frozen:
        return {}
    dtype = config.model.compute_dtype
    shapes = jax.eval_shape(lambda: computed_with(zeros(unflatten(expected_shapes(config.model))), dtype))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        meshes.shardings(shapes, mesh),
    )


def place_frozen(params: Params, config: Config, mesh: Mesh) -> Params:
    """A base's float32 weights on the devices, in the dtype in which they are used."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_frozen(config, mesh))
    return jax.jit(lambda tree: computed_with(tree, config.model.compute_dtype), out_shardings=shardings)(params)


def make_assemble(config: Config, mesh: Mesh) -> Assemble:
    """How the compiled steps get their model from trained and frozen parameters."""
    method = config.tune.method
    student = method == "distil"
    graphdef = meshes.model_structure(config.model, mesh, adapter_rank=config.tune.adapter_rank, student=student)
    gather = meshes.weight_gather(mesh, config.model.compute_dtype)  # for parameters outside of the layers

    def assemble(params: Params, frozen: Params, batch: Batch) -> tuple[BlockDiT, Batch]:
        if method == "inversion":
            heard = jnp.where(batch.speaker_mask[..., None], params[VOICE], 0)
            batch, params = dataclasses.replace(batch, speaker_latent=heard), frozen
        elif method == "duration":
            params = frozen
        elif method in ("lora", "distil"):
            params = with_adapters(frozen, params)
        return merge(graphdef, gather(params)), batch

    return assemble


def make_teacher(config: Config, mesh: Mesh) -> Callable[[Params], BlockDiT] | None:
    """How the compiled steps of a distillation get their teacher from the frozen parameters; None in other runs."""
    if config.tune.method != "distil":
        return None
    graphdef = meshes.model_structure(config.model, mesh)
    gather = meshes.weight_gather(mesh, config.model.compute_dtype)
    return lambda frozen: merge(graphdef, gather(frozen))


def guided_sampler(tune: TuneConfig) -> SamplerConfig:
    """What a student is measured against: the guided steps of its teacher, with the usual scale if it is trained."""
    low, high = tune.scales
    scale = min(max(SamplerConfig().cfg_scale, low), high)
    return SamplerConfig(steps=SMALLEST_STEPS, cfg_scale=scale, interval=tune.interval)


def with_voice(config: Config, batch: Batch) -> Batch:
    """The batch before condition dropout: in an inversion every row hears the trained voice, at its whole length."""
    if config.tune.method != "inversion":
        return batch
    return dataclasses.replace(batch, speaker_mask=jnp.ones_like(batch.speaker_mask))


def whole_weights(config: Config, params: Params, frozen: Params) -> Params:
    """The parameters of the complete model, from trained and frozen ones that are complete on this host."""
    if config.tune.method == "lora":
        return merge_adapters(frozen, params)
    return frozen if config.tune.is_frozen else params


def student_of(config: Config, params: Params) -> Params | None:
    """The trained student; None unless the run is a distillation."""
    return params if config.tune.method == "distil" else None


def student_facts(config: Config) -> StudentFacts | None:
    """What the student of a distillation is for; None unless the run is one."""
    tune = config.tune
    if tune.method != "distil":
        return None
    return StudentFacts(rank=tune.rank, scales=tune.scales, interval=tune.interval)


def duration_loss(frames: Float[Array, " b"], batch: Batch) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The mean over rows of |log(predicted frames / frames)|, about the relative error; aux as in `velocity_loss`."""
    kept = batch.latent_mask.any(axis=1) & batch.text_mask.any(axis=1)
    actual = jnp.maximum(jnp.sum(batch.latent_mask, axis=1), 1)
    row_loss = jnp.where(kept, jnp.abs(jnp.log(jnp.where(kept, frames, 1.0) / actual)), 0.0)
    weight = jnp.mean(kept, dtype=jnp.float32)
    total = jnp.mean(row_loss) / jnp.maximum(weight, 1 / len(kept))
    terms = {"flow": total, "alignment": jnp.float32(0)}
    return total, terms | {"row_loss": row_loss, "kept": kept, "weight": weight}


def voice_of(config: Config, params: Params, scale: LatentScale) -> np.ndarray | None:
    """The trained voice as codec latents (m, c); None unless the run is an inversion."""
    if config.tune.method != "inversion":
        return None
    return np.asarray(scale.restore(np.asarray(params[VOICE])), np.float32)


def base_facts(config: Config) -> Facts | None:
    """The facts of the weights that are tuned; None without `--tune`."""
    source = config.run.init_from
    return read_about(source)[1] if config.tune.method != "none" and source else None


def check_base_facts(config: Config, base: Facts, given: Facts) -> None:
    """ValueError if the data of a tuning have another codec or tokenizer than the weights it starts from.

    A model tuned in full is stored with its own tokenizer, so it may read bytes where its base reads phonemes.
    """
    source = config.run.init_from
    ours, theirs = given.codec.weights_hash, base.codec.weights_hash
    if ours and theirs and ours != theirs:
        raise ValueError(
            f"{config.data.data}: latents of the codec with hash {ours[:12]}, but {source} speaks with that of "
            f"{theirs[:12]}: prepare the data with --codec {base.codec.id or 'of that model'}"
        )
    tokenizers = base.tokenizer or given.tokenizer, given.tokenizer
    both_bytes = config.tune.method == "full" and all(one and one["kind"] in BYTES for one in tokenizers)
    if tokenizers[0] != tokenizers[1] and not both_bytes:
        raise ValueError(f"{source}: has another tokenizer than data.tokenizer {config.data.tokenizer}: use its own")
