"""What a training needs on a slice that is not there: memory by the TPU compiler, work and traffic by formula.

The train step is the real one, compiled for the slice's devices on any machine; nothing is run or allocated.
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
from echotts.training import flops
from echotts.training import mesh as meshes
from echotts.training.state import abstract_state
from echotts.training.step import make_train_step
from echotts.training.topology import Topology

GIB = 2**30
UTILISATIONS = (0.4, 0.5, 0.6)
REMATS: tuple[RematName, ...] = ("none", "dots", "full")  # cheapest first: least work done twice
FURTHER = 50  # times the largest batch known to fit: no further does the search look at once
LATENT_BYTES = 2  # float16 in shards
OUT_OF_MEMORY = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes a chip needs for one bucket, as the compiler found."""

    needed: int
    available: int
    arguments: int | None  # state and batch; None where the compiler gave up and said only the sum
    temporaries: int | None  # activations, gathered weights, gradients
    aliased: int | None  # of the arguments, what the results are written over: the donated state
    compile_s: float

    @property
    def fits(self) -> bool:
        return self.needed <= self.available


@dataclass(frozen=True)
class BucketPlan:
    """One bucket: `memory` is None where nothing was compiled."""

    frames: int
    tokens: int
    memory: Memory | None
    step_flops: float  # of the global batch, forward and backward
    step_s: dict[str, float]  # model FLOPs utilisation -> seconds
    samples_per_s_host: float  # at half of peak
    megabytes_per_s_host: float


@dataclass(frozen=True)
class Plan:
    """The whole answer; JSON-ready by `asdict`."""

    preset: str
    topology: str
    chips: int
    hosts: int
    batch_size: int
    remat: str
    attention: str
    parameters: int
    state_bytes_chip: int  # parameters, average and both moments in float32
    checkpoint_bytes: int
    fsdp_bytes_chip: int  # received a step
    fsdp_s: float  # at the chip's one-way interconnect rate
    buckets: list[BucketPlan]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(config: Config, topology: Topology, devices: Sequence[Any] | None) -> Plan:
    """Every bucket of the configuration on the slice; without devices (no compiler) by formula alone."""
    mesh = slice_mesh(config, devices) if devices is not None else None
    rows, chips = config.data.batch_size, topology.chips
    shape = meshes.mesh_shape(chips, config.run.data_ways, config.run.tensor_ways)
    meshes.check_layout(config, mesh or AbstractMesh(shape, meshes.MESH_AXES), chips // topology.hosts)
    # shapes are the same on any mesh; without the compiler this machine's own device stands in
    state = abstract_state(config, mesh or meshes.make_mesh(devices=jax.devices()[:1]))
    parameters = count_parameters(state.params)
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.arrays()))
    held = sum(_bytes_on_a_chip(leaf) for leaf in jax.tree.leaves(state.arrays())) if mesh else stored // chips
    traffic = flops.fsdp_traffic_bytes(parameters)
    return Plan(
        preset=config.preset,
        topology=topology.name,
        chips=chips,
        hosts=topology.hosts,
        batch_size=rows,
        remat=config.model.remat,
        attention=config.model.attention,
        parameters=parameters,
        state_bytes_chip=held,
        checkpoint_bytes=stored,
        fsdp_bytes_chip=traffic,
        fsdp_s=traffic * 8 / (topology.chip.interconnect_gbps * 1e9 / 2),
        buckets=[plan_bucket(config, topology, mesh, bucket) for bucket in config.data.buckets],
    )


def plan_bucket(config: Config, topology: Topology, mesh: Mesh | None, bucket: Bucket) -> BucketPlan:
    """Work and data of one bucket, and its memory where there is a mesh to compile for."""
    rows, reference = config.data.batch_size, config.data.reference_frames
    work = rows * flops.training_flops(config.model, bucket.frames, bucket.tokens, reference)
    peak = topology.chips * topology.chip.peak_tflops * flops.TERA
    samples_per_s = rows / (work / peak / 0.5) / topology.hosts
    sample_bytes = (bucket.frames + reference) * config.model.latent_channels * LATENT_BYTES + bucket.tokens
    return BucketPlan(
        frames=bucket.frames,
        tokens=bucket.tokens,
        memory=compile_memory(config, mesh, bucket, topology) if mesh else None,
        step_flops=work,
        step_s={f"{share:.0%}": work / peak / share for share in UTILISATIONS},
        samples_per_s_host=samples_per_s,
        megabytes_per_s_host=samples_per_s * sample_bytes / 1e6,
    )


def compile_memory(config: Config, mesh: Mesh, bucket: Bucket, topology: Topology) -> Memory:
    """Compiles the train step; that it does not fit is an answer, not an error."""
    began = time.perf_counter()
    available = int(topology.chip.hbm_gib * GIB)
    limit = jax.ShapeDtypeStruct((), jnp.float32)
    lowered = make_train_step(config, mesh).jitted.lower(
        abstract_state(config, mesh), abstract_batch(config, bucket), limit
    )
    try:
        analysis = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        found = OUT_OF_MEMORY.search(str(error))
        if found is None:
            raise
        needed, limit = (float(found[i]) * UNITS[found[i + 1]] for i in (1, 3))
        return Memory(int(needed), int(limit), None, None, None, time.perf_counter() - began)
    arguments, aliased = analysis.argument_size_in_bytes, analysis.alias_size_in_bytes
    results = analysis.output_size_in_bytes - aliased
    temporaries = analysis.temp_size_in_bytes
    needed = arguments + results + temporaries + analysis.generated_code_size_in_bytes
    return Memory(needed, available, arguments, temporaries, aliased, time.perf_counter() - began)


def search(config: Config, mesh: Mesh, topology: Topology, compile_one: Callable[[Config], Memory]) -> dict[str, int]:
    """For each remat, the largest batch size of the largest bucket that fits; 0 where the least does not."""
    least = meshes.batch_ways(mesh) * config.optim.accumulation

    def largest(remat: RematName) -> int:
        def needed(parts: int) -> Memory:
            data = replace(config.data, batch_size=parts * least)
            return compile_one(replace(config, model=replace(config.model, remat=remat), data=data))

        return least * largest_that_fits(needed)

    return {remat: largest(remat) for remat in REMATS}


def largest_that_fits(needed: Callable[[int], Memory]) -> int:
    """The largest whole number whose memory fits, 0 where that of 1 does not: the next one has been refused.

    Memory grows nearly in a straight line. One through the two nearest that are known says where to look next.
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
    """The remat that does least work twice among those that have room for a batch of so many rows."""
    return next((remat for remat in REMATS if largest_batch[remat] >= rows), None)


def slice_mesh(config: Config, devices: Sequence[Any]) -> Mesh:
    """The mesh the configuration asks for, over the devices of a slice."""
    return meshes.make_mesh(data=config.run.data_ways, tensor=config.run.tensor_ways, devices=devices)


def abstract_batch(config: Config, bucket: Bucket) -> Batch:
    """A global batch as shapes."""
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
