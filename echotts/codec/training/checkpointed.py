"""Loads the codec from a checkpoint of a possibly running training, to listen to it and to evaluate it."""

from pathlib import Path

import jax

from echotts.checkpoint.contents import (
    newest_readable,
    read_arrays,
    read_digests,
    read_meta,
    step_folders,
)
from echotts.checkpoint.digests import array_digests
from echotts.codec.backbone import abstract_params
from echotts.codec.config import CodecConfig
from echotts.codec.layers import Params
from echotts.codec.published import config_from_kwargs
from echotts.codec.training.weight_norm import fold, unfold
from echotts.rundir.layout import CHECKPOINTS, STEP
from echotts.rundir.location import RunPath


def read_run(path: Path) -> tuple[Params, CodecConfig]:
    """Folded EMA parameters and sizes from the newest complete checkpoint of a run, or from a step folder.

    Raises FileNotFoundError without a checkpoint, CheckpointError if none can be read, ValueError if the run does not
    train a codec, or trains only a decoder: its checkpoints do not contain the original frozen parameters.
    """
    folders = [path] if STEP.fullmatch(path.name) else step_folders(path / CHECKPOINTS)
    if not folders:
        raise FileNotFoundError(f"{path}: no checkpoint yet")
    return newest_readable(path, folders, _read, fatal=(_OtherRunError,))


class _OtherRunError(ValueError):
    """The checkpoint is readable, but contains no complete codec."""


def _read(folder: RunPath) -> tuple[Params, CodecConfig]:
    config = _config(folder)
    return fold(_average(folder, config)), config


def _config(folder: RunPath) -> CodecConfig:
    given = read_meta(folder).config
    if not isinstance(given.get("codec"), dict):
        raise _OtherRunError(f"{folder}: a checkpoint of a speech model: give one of a codec")
    if given.get("decoder_only"):
        raise _OtherRunError(f"{folder}: trains only a decoder: use the codec file written at the end of the run")
    return config_from_kwargs(given["codec"], str(folder))


def _average(folder: RunPath, config: CodecConfig) -> Params:
    here = jax.device_put(0.0, jax.local_devices()[0]).sharding
    shapes = jax.eval_shape(unfold, abstract_params(config))
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
    arrays, digests = read_arrays(folder, "ema", placed), read_digests(folder)
    if what := digests.changed_in({"ema": array_digests(arrays)}) if digests else "":
        raise ValueError(what)
    return arrays
