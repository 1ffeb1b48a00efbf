"""TPU slices by the names that users write, in any case: v4-64, v5e-32 or v5litepod-32, v5p-128, v6e-8, tpu7x-64."""

import difflib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from echotts.training.flops import CHIPS, Chip

CUBES = {  # chips -> torus of a v4, v5p or tpu7x slice
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
}
PLANES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}  # v5e and v6e
CUBIC = ("v4", "v5p", "tpu7x")  # their names count TensorCores, two per chip
TWO_DEVICES = ("tpu7x",)  # each TensorCore of a chip is a JAX device
ALIASES = {"v5litepod": "v5e"}
CHIPS_PER_HOST = 4
ONE_HOST = (1, 8)  # numbers of chips of v5e and v6e slices on a single host
NEAREST = 3
ENVIRONMENT = {  # keeps libtpu from querying a metadata server
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no chip to share
}
COMPILER_HINT = "pip install 'echotts[tpu]' installs the TPU compiler; it needs no TPU"


class NoCompilerError(RuntimeError):
    """The TPU compiler (libtpu) is not installed."""


@dataclass(frozen=True)
class Topology:
    """A slice, and its name for the compiler."""

    name: str
    chip: Chip  # resources of one JAX device
    chips: int  # JAX devices: chips, or the TensorCores of a tpu7x
    chips_billed: int
    hosts: int
    compiler_name: str
    compiler_options: Mapping[str, Any] = field(default_factory=dict)


def parse_topology(name: str) -> Topology:
    """The slice of this name; ValueError with the nearest names if it is unknown."""
    generation, _, number = name.strip().lower().partition("-")
    generation = ALIASES.get(generation, generation)
    known = topology_names()
    if f"{generation}-{number}" not in known:
        raise ValueError(
            f"unknown topology {name!r}: the nearest are {', '.join(nearest(generation, number))} "
            f"(generations {', '.join(CHIPS)}; v4, v5p and tpu7x count TensorCores, two per chip)"
        )
    cubic = generation in CUBIC
    chips = int(number) // 2 if cubic else int(number)
    # without megacore the compiler sees two devices per v4 chip, which is not how training runs
    options: dict[str, Any] = {"chip_config_name": "megacore"} if generation == "v4" else {}
    if chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    return Topology(
        name=name,
        chip=CHIPS[generation],
        chips=2 * chips if generation in TWO_DEVICES else chips,
        chips_billed=chips,
        hosts=1 if not cubic and chips in ONE_HOST else chips // CHIPS_PER_HOST,
        compiler_name=f"{generation}:{(CUBES if cubic else PLANES)[chips]}",
        compiler_options=options,
    )


def topology_names() -> list[str]:
    """All names except aliases, by generation and size."""
    return [
        f"{generation}-{chips * 2 if generation in CUBIC else chips}"
        for generation in CHIPS
        for chips in (CUBES if generation in CUBIC else PLANES)
    ]


def nearest(generation: str, number: str) -> list[str]:
    """The known names closest to an unknown one: nearest sizes of the generation, else by spelling."""
    sizes = [name for name in topology_names() if name.startswith(f"{generation}-")]
    if sizes and number.isdigit():
        return sorted(sizes, key=lambda name: abs(int(name.partition("-")[2]) - int(number)))[:NEAREST]
    matches = difflib.get_close_matches(f"{generation}-{number}", sizes or topology_names(), NEAREST, cutoff=0.0)
    return list(matches)


def compiler_devices(topology: Topology) -> list[Any]:
    """Devices of the slice to compile programs for, on any machine. NoCompilerError without libtpu."""
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise NoCompilerError(f"the TPU compiler is missing: {COMPILER_HINT}")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options = dict(topology.compiler_options)
    return list(topologies.get_topology_desc(topology.compiler_name, platform="tpu", **options).devices)
