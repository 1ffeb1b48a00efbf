"""Loads the codec from a checkpoint of a possibly running training, to listen to it and to evaluate it."""

from pathlib import Path

import jax

from echotts.checkpoint.contents import checkpoints_at, newest_readable, read_checked, read_meta
from echotts.codec.backbone import abstract_params
from echotts.codec.config import CodecConfig
from echotts.codec.layers import Params
from echotts.codec.published import config_from_kwargs
from echotts.codec.training.weight_norm import fold, unfold
from echotts.rundir.location import RunPath


def read_run(path: Path) -> tuple[Params, CodecConfig]:
    """Folded EMA parameters and sizes from the newest complete checkpoint of a run, or from a step folder.

    Raises FileNotFoundError without a checkpoint, CheckpointError if none can be read, ValueError if the run does not
    train a codec, or trains only a decoder: its checkpoints do not contain the original frozen parameters.
    """
    return newest_readable(path, checkpoints_at(path), _read, fatal=(_OtherRunError,))


class _OtherRunError(ValueError):
    """The checkpoint is readable, but contains no complete codec."""


def _read(folder: RunPath) -> tuple[Params, CodecConfig]:
    given = read_meta(folder).config
    if not isinstance(given.get("codec"), dict):
        raise _OtherRunError(f"{folder}: a checkpoint of a speech model: give one of a codec")
    if given.get("decoder_only"):
        raise _OtherRunError(f"{folder}: trains only a decoder: use the codec file written at the end of the run")
    config = config_from_kwargs(given["codec"], str(folder))
    shapes = jax.eval_shape(unfold, abstract_params(config))
    return fold(read_checked(folder, {"ema": shapes})["ema"]), config
