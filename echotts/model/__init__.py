"""The velocity network as pure functions of arrays, independent of meshes, files and processes."""

from echotts.model.dit import BlockDiT, Conditions
from echotts.model.parameters import (
    Params,
    build,
    computed_with,
    count_parameters,
    merge,
    no_decay,
    scale_to_fan_in,
    split,
)
