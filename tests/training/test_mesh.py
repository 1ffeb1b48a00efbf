"""The sharding table: every large parameter is sharded, and sharding changes no results."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from echotts import config as configs
from echotts.model.parameters import expected_shapes, flatten
from echotts.training import mesh as meshes
from echotts.training.plan import abstract_batch
from echotts.training.state import abstract_state
from echotts.training.step import make_train_step
from echotts.training.topology import compiler_devices, parse_topology
from tests.tiny_training import TINY, with_sections

MIB = 1 << 20
ROOT = Path(__file__).parents[2]
EXPECTED = {  # 1.3b on 32 chips, data 1 x fsdp 16 x tensor 2: every parameter above 1 MiB
    "blocks/attention/wgate/kernel": (None, "fsdp", "tensor"),
    "blocks/attention/wk_self/kernel": (None, "fsdp", "tensor"),
    "blocks/attention/wk_speaker/kernel": (None, "fsdp", "tensor"),
    "blocks/attention/wk_text/kernel": (None, "fsdp", "tensor"),
    "blocks/attention/wo/kernel": (None, "tensor", "fsdp"),
    "blocks/attention/wq/kernel": (None, "fsdp", "tensor"),
    "blocks/attention/wv_self/kernel": (None, "fsdp", "tensor"),
    "blocks/attention/wv_speaker/kernel": (None, "fsdp", "tensor"),
    "blocks/attention/wv_text/kernel": (None, "fsdp", "tensor"),
    "blocks/mlp/w1/kernel": (None, "fsdp", "tensor"),
    "blocks/mlp/w2/kernel": (None, "tensor", "fsdp"),
    "blocks/mlp/w3/kernel": (None, "fsdp", "tensor"),
    "cond_dense_0/kernel": (None, "fsdp"),
    "cond_dense_1/kernel": (None, "fsdp"),
    "cond_dense_global_gate/kernel": (None, "fsdp"),
    "cond_dense_global_scale/kernel": (None, "fsdp"),
    "cond_dense_global_shift/kernel": (None, "fsdp"),
    "speaker_encoder/in_proj/kernel": (None, "fsdp"),
}
for adaln in ("attn_adaln", "mlp_adaln"):
    for part in ("shift", "scale", "gate"):
        EXPECTED[f"blocks/{adaln}/adaln_rank_{part}/kernel"] = (None, "fsdp")
        EXPECTED[f"blocks/{adaln}/{part}/kernel"] = (None, None, "fsdp")
for encoder in ("text_encoder", "speaker_encoder"):
    for kernel in ("wq", "wk", "wv", "wgate"):
        EXPECTED[f"{encoder}/blocks/attention/{kernel}/kernel"] = (None, "fsdp", "tensor")
    EXPECTED[f"{encoder}/blocks/attention/wo/kernel"] = (None, "tensor", "fsdp")
    EXPECTED[f"{encoder}/blocks/mlp/w1/kernel"] = (None, "fsdp", "tensor")
    EXPECTED[f"{encoder}/blocks/mlp/w2/kernel"] = (None, "tensor", "fsdp")
    EXPECTED[f"{encoder}/blocks/mlp/w3/kernel"] = (None, "fsdp", "tensor")


def abstract_mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), meshes.MESH_AXES)


def test_every_parameter_above_a_mebibyte_has_the_listed_sharding():
    mesh = abstract_mesh(1, 16, 2)
    large = {p: leaf for p, leaf in expected_shapes(configs.echo_1b3().model).items() if 4 * leaf.size > MIB}
    found = {path: tuple(meshes.parameter_spec(path, leaf.shape, mesh)) for path, leaf in large.items()}
    assert found == EXPECTED


@pytest.mark.parametrize("preset", ["840m", "1.3b"])
@pytest.mark.parametrize("ways", [8, 16, 32, 64])
def test_fsdp_alone_cuts_all_that_is_large_over_any_pod(preset, ways):
    mesh = abstract_mesh(1, ways, 1)
    for path, leaf in expected_shapes(configs.preset(preset).model).items():
        if 4 * leaf.size > MIB:
            assert "fsdp" in meshes.parameter_spec(path, leaf.shape, mesh), path


def test_moments_and_average_are_sharded_like_their_parameters():
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    state = abstract_state(TINY, mesh)
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state)
    moments = specs.opt_state[1][0]
    assert flatten(specs.ema) == flatten(specs.params) == flatten(moments.mu) == flatten(moments.nu)
    assert specs.step == PartitionSpec()


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match=r"blocks/attention/wz/kernel: no rule"):
        meshes.parameter_spec("blocks/attention/wz/kernel", (2, 8, 8), abstract_mesh(1, 8, 1))


def test_a_dimension_that_does_not_divide_is_replicated():
    spec = meshes.parameter_spec("blocks/mlp/w1/kernel", (2, 12, 16), abstract_mesh(1, 8, 2))
    assert spec == PartitionSpec(None, None, "tensor")


def test_a_number_of_devices_that_does_not_fit_the_mesh_is_refused():
    with pytest.raises(ValueError, match="1 devices are not a multiple of data 2 x tensor 1"):
        meshes.make_mesh(data=2, devices=jax.devices()[:1])


def test_rows_that_do_not_divide_evenly_between_devices_are_refused():
    meshes.check_batch(6, meshes.make_mesh(devices=jax.devices()[:1]))
    with pytest.raises(ValueError, match="6 rows at a time cannot be divided evenly between 8 devices"):
        meshes.check_batch(6, abstract_mesh(2, 4, 1))


@dataclass(frozen=True)
class FakeDevice:
    """The attributes of a device that meshes use."""

    id: int
    process_index: int
    slice_index: int
    device_kind: str = "cpu"
    platform: str = "cpu"


def fake_device(number: int, *, hosts: int = 1, slices: int = 1, of: int = 8) -> FakeDevice:
    """One of `of` devices, divided in order into equal slices and equal hosts."""
    return FakeDevice(number, number * hosts // of, number * slices // of)


def test_replicas_of_the_model_do_not_span_slices():
    devices = [fake_device(number, slices=2) for number in (5, 2, 0, 7, 4, 1, 3, 6)]
    mesh = meshes.make_mesh(data=4, tensor=1, devices=devices).devices
    assert [sorted({device.slice_index for device in replica.flat}) for replica in mesh] == [[0], [0], [1], [1]]
    with pytest.raises(
        ValueError, match=r"2 slices, but run\.data_ways is 1: .*set --run\.data_ways to 2 or a multiple"
    ):
        meshes.make_mesh(devices=devices)


def fake_mesh(data: int, fsdp: int, tensor: int, hosts: int) -> Mesh:
    devices = [fake_device(number, hosts=hosts, of=data * fsdp * tensor) for number in range(data * fsdp * tensor)]
    return Mesh(np.array(devices).reshape(data, fsdp, tensor), meshes.MESH_AXES)


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        (fake_mesh(1, 16, 1, 2), "8 rows at a time cannot be divided evenly between 16 devices"),
        (fake_mesh(1, 2, 4, 1), r"model\.heads 2 is not a multiple of tensor_ways 4: change --run\.tensor_ways"),
        (fake_mesh(1, 4, 2, 8), r"tensor_ways 2: devices that share heads would be on several hosts of 1 devices"),
        (abstract_mesh(1, 4, 2), "tensor_ways 2: "),
    ],
)
def test_an_invalid_layout_is_rejected_before_anything_is_traced(mesh, said):
    with pytest.raises(ValueError, match=said):
        meshes.check_layout(TINY, mesh, 1)
    meshes.check_layout(TINY, fake_mesh(2, 2, 2, 4), 2)
    meshes.check_layout(TINY, abstract_mesh(2, 2, 2), 2)


EIGHT = """
import json, sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from echotts.checkpoint.digests import array_digests
from echotts.training import mesh as meshes
from echotts.training.feed import to_devices
from echotts.training.state import initial_state
from echotts.training.step import make_train_step
from tests.tiny_training import TINY, random_batch

def losses(mesh):
    state, found = initial_state(TINY, mesh), []
    step = make_train_step(TINY, mesh)
    for seed in range(3):
        state, numbers = step(state, to_devices(random_batch(seed=seed), mesh))
        found.append([float(numbers["loss"]), float(numbers["grad_norm"])])
    kernel = state.params["blocks"]["mlp"]["w1"]["kernel"]
    pieces = {str(shard.index) for shard in kernel.addressable_shards}
    return found, [len(pieces), float(np.abs(np.asarray(kernel)).sum())]

def gathered(mesh):
    def product(kernels):
        whole = meshes.weight_gather(mesh, "bfloat16")(kernels)
        return jax.numpy.sum(whole["mlp"]["w1"]["kernel"].astype("float32") ** 2), whole

    kernels = {"mlp": {"w1": {"kernel": jax.numpy.ones((8, 4))}}, "out_proj": {"kernel": jax.numpy.ones((8, 4))}}
    placed = jax.device_put(kernels, meshes.shardings(kernels, mesh))
    gradients, whole = jax.jit(jax.grad(product, has_aux=True))(placed)
    leaves = [*jax.tree.leaves(whole), gradients["mlp"]["w1"]["kernel"]]
    return [[str(leaf.dtype), list(leaf.addressable_shards[0].data.shape)] for leaf in leaves]

assert jax.device_count() == 8
eight = meshes.make_mesh(data=2, tensor=2)
array = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
specs = [P(), P("fsdp"), P(("data", "fsdp"), None, "tensor"), P(None, "tensor")]
cut = [jax.device_put(array, NamedSharding(eight, spec)) for spec in specs]
assert len({array_digests(piece)[""] for piece in [*cut, array]}) == 1
meshes_under_test = [meshes.make_mesh(devices=jax.devices()[:1]), eight]
print(json.dumps([*(losses(mesh) for mesh in meshes_under_test), gathered(eight)]))
"""


def test_one_device_and_eight_give_the_same_losses(compile_once):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compile_once),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run([sys.executable, "-c", EIGHT], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (one, [pieces, total]), (eight, [cut_pieces, cut_total]), (kernel, last, gradient) = json.loads(
        done.stdout.splitlines()[-1]
    )
    assert (pieces, cut_pieces) == (1, 4)  # fsdp 2 x tensor 2, in two copies
    np.testing.assert_allclose(eight, one, rtol=2e-5)
    np.testing.assert_allclose(cut_total, total, rtol=1e-6)
    # computed with: whole over fsdp, the MLP's channels cut in two; the projection that computes in float32 stays so
    assert (kernel, last) == (["bfloat16", [8, 2]], ["float32", [8, 4]])
    assert gradient == ["float32", [4, 2]]  # as it is stored


@pytest.mark.tpu_compile
@pytest.mark.parametrize("name", ["v5e-32", "v4-32"])
def test_two_slices_hold_a_copy_each_and_the_step_compiles_for_them(name):
    slice_ = parse_topology(name)
    compiler_devices(slice_)  # which prepares the environment
    options = dict(slice_.compiler_options)
    two = topologies.get_topology_desc(slice_.compiler_name, platform="tpu", num_slices=2, **options).devices
    assert len(two) == 2 * slice_.chips
    config = with_sections(TINY, data={"batch_size": len(two), "streams": len(two)})
    mesh = meshes.make_mesh(data=2, devices=two)
    assert [{device.slice_index for device in copy.flat} for copy in mesh.devices] == [{0}, {1}]
    batch = abstract_batch(config, config.data.buckets[0])
    limit = jax.ShapeDtypeStruct((), np.float32)
    make_train_step(config, mesh).jitted.lower(abstract_state(config, mesh), batch, limit, {}).compile()


@dataclass(frozen=True)
class Chip:
    """What the arrangement of a mesh asks a TPU chip."""

    id: int
    coords: tuple[int, int, int]
    device_kind: str = "TPU v6 lite"
    platform: str = "tpu"
    core_on_chip: int = 0
    process_index: int = 0
    slice_index: int = 0


@pytest.mark.parametrize("slices", [1, 2])
def test_two_replicas_share_a_square_of_chips_of_which_no_axis_has_their_size(slices):
    places = [(x, y) for y in range(8) for x in range(8)]
    chips = [Chip(64 * s + i, (x, y, 0), slice_index=s) for s in range(slices) for i, (x, y) in enumerate(places)]
    mesh = meshes.make_mesh(data=2 * slices, devices=chips)
    assert dict(mesh.shape) == {"data": 2 * slices, "fsdp": 32, "tensor": 1}
    assert len({chip.id for chip in mesh.devices.flat}) == 64 * slices
    assert all(len({chip.slice_index for chip in replica.flat}) == 1 for replica in mesh.devices)
