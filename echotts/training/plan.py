"""Plans a training on an absent slice: work and traffic by formula, memory and time by the TPU compiler.

The real train step is compiled for the slice's devices on any machine; nothing is run or allocated. Its time is the
compiler's estimate (training/cost.py), not measured.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from echotts.config import Bucket, Config, RematName
from echotts.data.stream.batch import Batch
from echotts.model import count_parameters
from echotts.training import cost, flops
from echotts.training import mesh as meshes
from echotts.training.state import abstract_state
from echotts.training.step import make_train_step
from echotts.training.topology import Topology
from echotts.training.tuning import abstract_frozen

GIB = 2**30
UTILISATIONS = (0.4, 0.5, 0.6)
REMATS: tuple[RematName, ...] = ("none", "dots", "full")  # cheapest first: least recomputation
FURTHER = 50  # limit of a search step, times the largest batch known to fit
LATENT_BYTES = 2  # float16 in shards
OUT_OF_MEMORY = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes that a chip needs for one bucket, according to the compiler."""

    needed: int
    available: int
    arguments: int | None  # state and batch; None if the compiler failed and reported only the total
    temporaries: int | None  # activations, gathered weights, gradients
    aliased: int | None  # donated arguments that are overwritten by results
    compile_s: float

    @property
    def fits(self) -> bool:
        return self.needed <= self.available


@dataclass(frozen=True)
class BucketPlan:
    """One bucket by formula."""

    frames: int
    tokens: int
    step_flops: float  # of the global batch, forward and backward, as counted by MFU
    hardware_flops: float  # including recomputation by remat
    step_s: dict[str, float]  # MFU -> seconds
    samples_per_s_host: float  # at half of peak
    megabytes_per_s_host: float


@dataclass(frozen=True)
class StepTime:
    """Compiler estimates, not measured, of one bucket's step."""

    step_s: float
    mfu_share: float  # share of peak, counting model FLOPs
    hfu_share: float  # share of peak, including recomputation
    samples_per_s: float
    run_hours: float  # for all configured steps in this bucket
    step_price: float | None  # in the currency of the chip's price
    run_price: float | None
    cost: cost.StepCost

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "cost"} | {"cost": self.cost.to_dict()}


@dataclass(frozen=True)
class Compiled:
    """Compiler results for one bucket; `time` is None if it does not fit."""

    memory: Memory
    time: StepTime | None

    def to_dict(self) -> dict[str, Any]:
        return {"memory": asdict(self.memory), "time": self.time.to_dict() if self.time else None}


@dataclass(frozen=True)
class Plan:
    """What is known before compilation; JSON-serialisable by `asdict`."""

    preset: str
    topology: str
    chips: int
    hosts: int
    batch_size: int
    accumulation: int
    steps: int
    remat: str
    attention: str
    parameters: int
    state_bytes_chip: int  # parameters, EMA and both moments in float32
    checkpoint_bytes: int
    fsdp_bytes_chip: int  # received per step
    fsdp_s: float  # at the chip's one-way interconnect rate
    buckets: list[BucketPlan]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(config: Config, topology: Topology, devices: Sequence[Any] | None) -> Plan:
    """All buckets of the configuration on the slice, by formula; known devices determine the sharding of the state."""
    mesh = slice_mesh(config, devices) if devices is not None else None
    rows, chips = config.data.batch_size, topology.chips
    shape = meshes.mesh_shape(chips, config.run.data_ways, config.run.tensor_ways)
    meshes.check_layout(config, mesh or AbstractMesh(shape, meshes.MESH_AXES), chips // topology.hosts)
    # shapes are the same on any mesh; without the compiler this machine's own device is used
    state = abstract_state(config, mesh or meshes.make_mesh(devices=jax.devices()[:1]))
    parameters = count_parameters(state.params)
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.arrays()))
    held = sum(_bytes_on_a_chip(leaf) for leaf in jax.tree.leaves(state.arrays())) if mesh else stored // chips
    traffic = flops.fsdp_traffic_bytes(parameters, config.optim.accumulation)
    return Plan(
        preset=config.preset,
        topology=topology.name,
        chips=chips,
        hosts=topology.hosts,
        batch_size=rows,
        accumulation=config.optim.accumulation,
        steps=config.optim.steps,
        remat=config.model.remat,
        attention=config.model.attention,
        parameters=parameters,
        state_bytes_chip=held,
        checkpoint_bytes=stored,
        fsdp_bytes_chip=traffic,
        fsdp_s=traffic / topology.chip.one_way_bytes_s,
        buckets=[plan_bucket(config, topology, bucket) for bucket in config.data.buckets],
    )


def state_sizes(config: Config) -> dict[str, int]:
    """Numbers of parameters, and bytes of the state, the frozen weights in it, and a checkpoint, on one device."""
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    state, frozen = abstract_state(config, mesh), abstract_frozen(config, mesh)
    stored, unchanged = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for tree in (state.arrays(), frozen)
    )
    trained = count_parameters(state.params)
    return {
        "parameters": trained + count_parameters(frozen),
        "trained": trained,
        "state_bytes": stored + unchanged,
        "frozen_bytes": unchanged,
        "checkpoint_bytes": stored,
    }


def plan_bucket(config: Config, topology: Topology, bucket: Bucket) -> BucketPlan:
    """Work and data rate of one bucket."""
    rows, reference = config.data.batch_size, config.data.reference_frames
    shape = (config.model, bucket.frames, bucket.tokens, reference, config.tune.method)
    work = rows * flops.training_flops(*shape)
    peak = topology.chips * topology.chip.peak_tflops * flops.TERA
    samples_per_s = rows / (work / peak / 0.5) / topology.hosts
    sample_bytes = (bucket.frames + reference) * config.model.latent_channels * LATENT_BYTES + bucket.tokens
    return BucketPlan(
        frames=bucket.frames,
        tokens=bucket.tokens,
        step_flops=work,
        hardware_flops=rows * flops.hardware_flops(*shape),
        step_s={f"{share:.0%}": work / peak / share for share in UTILISATIONS},
        samples_per_s_host=samples_per_s,
        megabytes_per_s_host=samples_per_s * sample_bytes / 1e6,
    )


def compile_bucket(
    config: Config, mesh: Mesh, bucket: Bucket, topology: Topology, chip_hour_price: float | None = None
) -> Compiled:
    """Compiles the train step; not fitting into memory is a result, not an error."""
    began = time.perf_counter()
    available = int(topology.chip.hbm_gib * GIB)
    limit = jax.ShapeDtypeStruct((), jnp.float32)
    lowered = make_train_step(config, mesh).jitted.lower(
        abstract_state(config, mesh), abstract_batch(config, bucket), limit, abstract_frozen(config, mesh)
    )
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = OUT_OF_MEMORY.search(str(error))
        if found is None:
            raise
        needed, limit = (float(found[i]) * UNITS[found[i + 1]] for i in (1, 3))
        return Compiled(Memory(int(needed), int(limit), None, None, None, time.perf_counter() - began), None)
    analysis = compiled.memory_analysis()
    arguments, aliased = analysis.argument_size_in_bytes, analysis.alias_size_in_bytes
    results = analysis.output_size_in_bytes - aliased
    temporaries = analysis.temp_size_in_bytes
    needed = arguments + results + temporaries + analysis.generated_code_size_in_bytes
    memory = Memory(needed, available, arguments, temporaries, aliased, time.perf_counter() - began)
    step = cost.estimate(compiled.as_text(), topology.chip)
    return Compiled(memory, step_time(config, topology, bucket, step, chip_hour_price))


def step_time(
    config: Config, topology: Topology, bucket: Bucket, step: cost.StepCost, chip_hour_price: float | None
) -> StepTime:
    """Utilisation, throughput and price from the cost of one step."""
    by_formula = plan_bucket(config, topology, bucket)
    available = topology.chips * topology.chip.peak_tflops * flops.TERA * step.step_s
    hours = step.step_s * config.optim.steps / 3600
    hour_price = None if chip_hour_price is None else chip_hour_price * topology.chips_billed
    return StepTime(
        step_s=step.step_s,
        mfu_share=by_formula.step_flops / available,
        hfu_share=by_formula.hardware_flops / available,
        samples_per_s=config.data.batch_size / step.step_s,
        run_hours=hours,
        step_price=None if hour_price is None else hour_price * step.step_s / 3600,
        run_price=None if hour_price is None else hour_price * hours,
        cost=step,
    )


def search(config: Config, mesh: Mesh, topology: Topology, compile_one: Callable[[Config], Memory]) -> dict[str, int]:
    """For each remat, the largest batch size that fits with the largest bucket; 0 if not even the smallest fits."""
    least = meshes.batch_ways(mesh) * config.optim.accumulation

    def largest(remat: RematName) -> int:
        def needed(parts: int) -> Memory:
            data = replace(config.data, batch_size=parts * least)
            return compile_one(replace(config, model=replace(config.model, remat=remat), data=data))

        return least * largest_that_fits(needed)

    return {remat: largest(remat) for remat in REMATS}


def largest_that_fits(needed: Callable[[int], Memory]) -> int:
    """The largest number whose memory fits, 0 if 1 does not; the next number is known not to fit.

    Memory grows almost linearly, so each guess is on a line through the two nearest known points.
    """
    known = {1: needed(1)}
    if not known[1].fits:
        return 0
    known[2] = needed(2)
    while True:
        fits, *below = sorted((number for number in known if known[number].fits), reverse=True)
        refused = min((number for number in known if not known[number].fits), default=None)
        if refused == fits + 1:
            return fits
        near = refused or below[0]
        slope = (known[near].needed - known[fits].needed) / (near - fits)
        guess = fits + int((known[fits].available - known[fits].needed) / max(slope, 1.0))
        guess = min(max(guess, fits + 1), FURTHER * fits)
        known[guess] = needed(guess)


def cheapest_remat(largest_batch: Mapping[str, int], rows: int) -> str | None:
    """The remat with the least recomputation among those for which this batch size fits."""
    return next((remat for remat in REMATS if largest_batch[remat] >= rows), None)


def slice_mesh(config: Config, devices: Sequence[Any]) -> Mesh:
    """The configured mesh over the devices of a slice."""
    return meshes.make_mesh(data=config.run.data_ways, tensor=config.run.tensor_ways, devices=devices)


def abstract_batch(config: Config, bucket: Bucket) -> Batch:
    """A global batch of shapes."""
    rows, reference = config.data.batch_size, config.data.reference_frames
    channels = config.model.latent_channels

    def shape(*dimensions: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *dimensions), dtype)

    return Batch(
        latent=shape(bucket.frames, channels),
        latent_mask=shape(bucket.frames, dtype=jnp.bool_),
        text_ids=shape(bucket.tokens, dtype=jnp.int32),
        text_mask=shape(bucket.tokens, dtype=jnp.bool_),
        speaker_latent=shape(reference, channels),
        speaker_mask=shape(reference, dtype=jnp.bool_),
    )


def _bytes_on_a_chip(leaf: Any) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape)
    size = leaf.dtype.itemsize
    for dimension in shape:
        size *= dimension
    return size
