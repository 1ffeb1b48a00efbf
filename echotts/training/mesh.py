"""The one sharding table: which axes of which parameters are sharded over which axes of the device mesh.

Nothing else in the package names a mesh axis. To change the strategy, edit only RULES and AXES. The mesh has three
axes: `data` (replicas of the model), `fsdp` (parameters and batch are sharded) and `tensor` (heads and MLP channels are
sharded).
"""

import functools
import re
from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from echotts.config import Config, ModelConfig
from echotts.model import layers
from echotts.model.attention import Attend, HeadAttention, HeadNorms, with_heads
from echotts.model.fused import choose_attention, frame_tile, splash
from echotts.model.kernel import gated_attention
from echotts.model.parameters import structure

MESH_AXES = ("data", "fsdp", "tensor")

# Mesh axes of each logical axis; anything not listed here is replicated.
AXES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
}

# Parameter path -> logical axes of its last dimensions ("" is replicated). The first match wins, no match is an error.
# Patterns match at the end of paths, so the table serves parameters, their EMA and the optimizer's moments alike.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"attention/w[qkv]\w*/kernel", ("embed", "heads")),
    (r"attention/wgate/kernel", ("embed", "heads")),
    (r"attention/wo/kernel", ("heads", "embed")),
    (r"mlp/w[13]/kernel", ("embed", "mlp")),
    (r"mlp/w2/kernel", ("mlp", "embed")),
    (r"(attn|mlp)_adaln/adaln_rank_\w+/kernel", ("embed", "")),
    (r"(attn|mlp)_adaln/(shift|scale|gate)/kernel", ("", "embed")),
    (r"cond_dense_0/kernel", ("", "embed")),
    (r"cond_dense_(1|global_\w+)/kernel", ("", "embed")),
    (r"in_proj/kernel", ("", "embed")),
    (r"out_proj/kernel", ("embed", "")),
    (r"text_embedding/embedding", ("", "embed")),
    (r"lora_[ab]", ()),  # adapters are small
    (r"speaker_latent", ()),
    (r"duration/\w+/kernel", ()),
    (r"\w+/(bias|weight)", ()),
    (r"(step|count|ns_coeffs)", ()),
)
WHOLE_PRECISION = re.compile(r"out_proj/")  # computed in float32 (model/dit.py)
_COMPILED = tuple((re.compile(rf"(^|/){pattern}$"), axes) for pattern, axes in RULES)


def make_mesh(*, data: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices: `data` replicas, `tensor` ways of tensor parallelism, FSDP over the rest.

    With several slices each holds complete replicas: only gradients are summed between slices. An axis may take a part
    of a physical one: two replicas on 8 x 8 chips.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(len(devices), data, tensor)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    types = (AxisType.Auto,) * len(MESH_AXES)
    if slices == 1:
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(arranged, MESH_AXES, axis_types=types)
    if data % slices:
        raise ValueError(
            f"{slices} slices, but run.data_ways is {data}: each slice must hold complete replicas of the model, "
            f"so set --run.data_ways to {slices} or a multiple of it"
        )
    inside, between = (data // slices, *shape[1:]), (slices, 1, 1)
    arranged = mesh_utils.create_hybrid_device_mesh(inside, between, devices=devices, allow_split_physical_axes=True)
    return Mesh(arranged, MESH_AXES, axis_types=types)


def mesh_shape(devices: int, data: int, tensor: int) -> tuple[int, int, int]:
    """Sizes of MESH_AXES. ValueError if the devices cannot be divided that way."""
    if devices % (data * tensor):
        raise ValueError(f"{devices} devices are not a multiple of data {data} x tensor {tensor}")
    return (data, devices // (data * tensor), tensor)


def check_layout(config: Config, mesh: Mesh | AbstractMesh, host_devices: int) -> None:
    """ValueError, before tracing, if rows or heads cannot be divided evenly or a tensor group spans hosts.

    `host_devices` is the number of devices per host, used if the mesh has no devices.
    """
    check_batch(config.data.batch_size // config.optim.accumulation, mesh)
    tensor, model = mesh.shape["tensor"], config.model
    for name, heads in (
        ("heads", model.heads),
        ("text.heads", model.text.heads),
        ("speaker.heads", model.speaker.heads),
    ):
        if heads % tensor:
            raise ValueError(
                f"model.{name} {heads} is not a multiple of tensor_ways {tensor}: change --run.tensor_ways"
            )
    spans = bool(host_devices % tensor)
    if isinstance(mesh, Mesh):
        groups = mesh.devices.reshape(-1, tensor)
        spans = any(len({device.process_index for device in group}) > 1 for group in groups)
    if spans:
        raise ValueError(
            f"tensor_ways {tensor}: devices that share heads would be on several hosts of {host_devices} devices, but "
            "heads can be sharded only within a host: choose a smaller --run.tensor_ways"
        )


def own_rows(mesh: Mesh, rows: int) -> list[int]:
    """The rows of a global batch on this process's devices, in order. On a TPU slice rows of hosts interleave."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return sorted({row for index in indices if index for row in range(*index[0].indices(rows))})


def parameter_spec(path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The sharding of the array at this '/'-joined path.

    The table names the last dimensions. Dimensions before them (stacked layers) are replicated, and so are dimensions
    that are not divisible by their mesh axes.
    """
    logical = _match(path)
    if len(logical) > len(shape):
        raise ValueError(f"{path}: the sharding table names {len(logical)} dimensions, but the array has shape {shape}")
    names = [""] * (len(shape) - len(logical)) + list(logical)
    cuts = [_cut(name, size, mesh) for name, size in zip(names, shape, strict=True)]
    while cuts and cuts[-1] is None:
        cuts.pop()
    return PartitionSpec(*cuts)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The tree with a NamedSharding for each array, by its path. Leaves only need a shape."""

    def of_leaf(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, parameter_spec(path_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows sharded over the batch axes; other dimensions are replicated."""
    return NamedSharding(mesh, PartitionSpec(AXES["batch"]))


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
    """Number of parts into which the rows of a batch are sharded."""
    return prod(mesh.shape[axis] for axis in AXES["batch"])


def check_batch(rows: int, mesh: Mesh | AbstractMesh) -> None:
    """Raises ValueError if the rows of a batch (or of its accumulated part) cannot be sharded evenly."""
    if rows % batch_ways(mesh):
        raise ValueError(
            f"{rows} rows at a time cannot be divided evenly between {batch_ways(mesh)} devices: "
            "make batch_size / accumulation a multiple of that"
        )


def activation_constraint(mesh: Mesh) -> layers.Constrain:
    """A function for activations at block boundaries that keeps rows sharded like the batch."""
    if mesh.size == 1:
        return layers.identity
    sharding = batch_sharding(mesh)

    def constrain(x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x, sharding)

    return constrain


@functools.cache  # cached, because model structures are compared by the identity of this function
def weight_gather(mesh: Mesh, dtype: str) -> layers.Gather:
    """A function that gathers whole kernels in the compute dtype before they are used.

    Otherwise XLA multiplies kernels that are sharded along the contracted axis piece by piece, 32 rows at a time, but
    a TPU's matrix unit needs at least 128. Gradients are reduced and sharded again in one reduce-scatter.
    """
    if mesh.shape["fsdp"] == 1:
        return layers.identity

    def gather(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(one, params)

    def one(path: Any, leaf: Array) -> Array:
        name = path_name(path).removesuffix("/value")  # added by nnx inside a scan
        stored = parameter_spec(name, leaf.shape, mesh)
        used = PartitionSpec(*(None if cut in (AXES["embed"][0], AXES["embed"]) else cut for cut in stored))
        if stored == used or leaf.ndim > 2:
            return leaf
        computed = dtype if name.endswith("kernel") and not WHOLE_PRECISION.search(name) else leaf.dtype
        return _gathered(leaf, NamedSharding(mesh, stored), NamedSharding(mesh, used), computed)

    return gather


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(kernel: Array, stored: NamedSharding, used: NamedSharding, dtype: Any) -> Array:
    # constrain the sharded result of the cast, so that the cast comes first and half the bytes are transferred
    cast = jax.lax.with_sharding_constraint(kernel.astype(dtype), stored)
    return checkpoint_name(jax.lax.with_sharding_constraint(cast, used), layers.GATHERED)


def _gathered_forward(kernel: Array, stored: NamedSharding, used: NamedSharding, dtype: Any) -> tuple[Array, None]:
    return _gathered(kernel, stored, used, dtype), None


def _gathered_backward(
    stored: NamedSharding, used: NamedSharding, dtype: Any, _: None, gradient: Array
) -> tuple[Array]:
    return (jax.lax.with_sharding_constraint(gradient, stored).astype(jnp.float32),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def attention(config: ModelConfig, mesh: Mesh) -> HeadAttention:
    """The attention of the mesh's platform; a single-device kernel runs on each device's rows and heads."""
    chosen = choose_attention(mesh.devices.flat[0].platform, config)
    if mesh.size > 1 and chosen is gated_attention:
        return _kernel_on_each_device(mesh)
    return with_heads(_on_each_device(splash, mesh)) if mesh.size > 1 and chosen is with_heads(splash) else chosen


@functools.cache  # cached, because model structures are compared by the identity of this function
def _kernel_on_each_device(mesh: Mesh) -> HeadAttention:
    def cut(
        q: Array, keys: Any, values: Any, gate: Array, norms: HeadNorms, rope: Array, visible: Any = None, **fixed: Any
    ) -> Array:
        heads = _cut("heads", len(norms.q_gain), mesh)
        rows, width = PartitionSpec(AXES["batch"]), PartitionSpec(AXES["batch"], None, heads)

        def local(q: Array, keys: Any, values: Any, gate: Array, gains: Any, rope: Array, visible: Any) -> Array:
            here = HeadNorms(gains[0], gains[1], norms.eps, norms.turned)
            first = jax.lax.axis_index(heads) * len(gains[0]) if heads else 0
            return gated_attention(q, keys, values, gate, here, rope, visible, first_head=first, **fixed)

        gains = PartitionSpec(heads)
        specs = (width, width, width, width, gains, PartitionSpec(), rows)
        each = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=width, check_vma=False)
        return each(q, tuple(keys), tuple(values), gate, (norms.q_gain, norms.k_gain), rope, visible)

    return cut


@functools.cache
def _on_each_device(attend: Attend, mesh: Mesh) -> Attend:
    def cut(q: Array, k: Array, v: Array, visible: Array | None = None, *, causal: bool = False) -> Array:
        rows = PartitionSpec(AXES["batch"])
        heads = PartitionSpec(AXES["batch"], None, _cut("heads", q.shape[2], mesh))
        inputs = (q, k, v) if visible is None else (q, k, v, visible)
        specs = (heads, heads, heads, rows)[: len(inputs)]
        local = functools.partial(attend, causal=causal)
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)(*inputs)

    return cut


def model_structure(config: ModelConfig, mesh: Mesh, adapter_rank: int = 0, student: bool = False) -> Any:
    """The static structure of a model that computes on this mesh."""
    return structure(
        config,
        frame_tile=frame_tile(mesh.devices.flat[0].platform),
        constrain=activation_constraint(mesh),
        gather=weight_gather(mesh, config.compute_dtype),
        attend=attention(config, mesh),
        adapter_rank=adapter_rank,
        student=student,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def path_name(path: Any) -> str:
    """A tree path in the form the table expects: "opt_state/mu/blocks/attention/wq/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _match(path: str) -> tuple[str, ...]:
    for pattern, axes in _COMPILED:
        if pattern.search(path):
            return axes
    raise ValueError(f"{path}: no rule of the sharding table (training/mesh.py) matches this parameter")


def _cut(logical: str, size: int, mesh: Mesh | AbstractMesh) -> str | tuple[str, ...] | None:
    axes = AXES[logical] if logical else ()
    if not axes or size % prod(mesh.shape[axis] for axis in axes):
        return None
    return axes[0] if len(axes) == 1 else axes
