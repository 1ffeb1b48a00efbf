"""TPU slices by the names users write: v4-64, v5e-32, v5litepod-16, v5p-128, v6e-8."""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from echotts.training.flops import CHIPS, Chip

CUBES = {  # chips -> torus of a v4 or v5p slice
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
}
PLANES = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}  # v5e and v6e
ALIASES = {"v5litepod": "v5e"}
CHIPS_PER_HOST = 4
CHIPS_OF_ONE_HOST = 8  # v5e and v6e have hosts of eight chips, for slices of eight alone
ENVIRONMENT = {  # so that libtpu neither asks a metadata server nor complains that there is none
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no chip to fight for
}
COMPILER_HINT = "pip install 'echotts[tpu]' brings the TPU compiler; it needs no TPU"


class NoCompilerError(RuntimeError):
    """The TPU compiler (libtpu) is not installed."""


@dataclass(frozen=True)
class Topology:
    """A slice: one jax device a chip."""

    name: str
    chip: Chip
    chips: int
    hosts: int
    compiler_name: str
    compiler_options: Mapping[str, Any] = field(default_factory=dict)


def parse_topology(name: str) -> Topology:
    """The slice of this name. v4 and v5p count TensorCores, two a chip; v5e and v6e count chips. ValueError else."""
    generation, _, number = name.lower().partition("-")
    generation = ALIASES.get(generation, generation)
    cubes = generation in ("v4", "v5p")
    shapes = CUBES if cubes else PLANES
    known = {str(chips * 2 if cubes else chips): chips for chips in shapes}
    if generation not in CHIPS or number not in known:
        choices = {kind: [str(c * 2 if kind in ("v4", "v5p") else c) for c in _shapes(kind)] for kind in CHIPS}
        raise ValueError(
            f"unknown topology {name!r}: choose one of "
            + ", ".join(f"{kind}-{{{','.join(sizes)}}}" for kind, sizes in choices.items())
        )
    chips = known[number]
    # without megacore the compiler sees two devices a v4 chip, which is not how training runs
    options = {"chip_config_name": "megacore"} if generation == "v4" else {}
    single = not cubes and chips == CHIPS_OF_ONE_HOST
    return Topology(
        name=name,
        chip=CHIPS[generation],
        chips=chips,
        hosts=1 if single else chips // CHIPS_PER_HOST,
        compiler_name=f"{generation}:{shapes[chips]}",
        compiler_options=options,
    )


def compiler_devices(topology: Topology) -> list[Any]:
    """Devices of the slice that programs can be compiled for, on any machine. NoCompilerError without libtpu."""
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise NoCompilerError(f"the TPU compiler is missing: {COMPILER_HINT}")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options = dict(topology.compiler_options)
    return list(topologies.get_topology_desc(topology.compiler_name, platform="tpu", **options).devices)


def _shapes(generation: str) -> Mapping[int, str]:
    return CUBES if generation in ("v4", "v5p") else PLANES
