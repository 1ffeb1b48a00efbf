"""Students: what distillation (flow/distillation.py) adds to a model, as a tree of its own beside unchanged weights.

It consists of low-rank adapters of the decoder (model/adapters.py) and of two more inputs, the length of a step and the
guidance scale, which are added to the time embedding. The encoders stay those of the model.
"""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Key

from echotts.config import ModelConfig
from echotts.model.adapters import DOWN, UP, merge_adapters, with_adapters
from echotts.model.dit import BlockDiT
from echotts.model.parameters import Params, flatten, split, unflatten

STUDENT = "student"  # prefix of its tensors in files
INPUTS = ("length_input/", "scale_input/")


def create_student(config: ModelConfig, rank: int, key: Key[Array, ""]) -> Params:
    """A fresh student, whose velocity is the model's own, without guidance, whatever its inputs are."""
    params = split(BlockDiT(config, rngs=nnx.Rngs(key), adapter_rank=rank, student=True))[1]
    return unflatten(
        {path: leaf for path, leaf in flatten(params).items() if path.endswith((DOWN, UP)) or is_input(path)}
    )


def student_shapes(config: ModelConfig, rank: int) -> dict[str, Any]:
    """Path -> jax.ShapeDtypeStruct of every array of a student."""
    return flatten(jax.eval_shape(lambda: create_student(config, rank, jax.random.key(0))))


def student_params(params: Params, student: Params) -> Params:
    """The parameters of `BlockDiT(config, student=True)` from those of the model and the student, on the host."""
    inputs = {path: leaf for path, leaf in flatten(student).items() if is_input(path)}
    return with_adapters(merge_adapters(params, student), unflatten(inputs))


def is_input(path: str) -> bool:
    """Whether the parameter at this path belongs to one of the two inputs."""
    return path.startswith(INPUTS)
