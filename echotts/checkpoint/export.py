"""Weights out of a run: for inference (model.safetensors), and for fine-tuning from whatever holds weights."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from echotts import gcs
from echotts.checkpoint import interop
from echotts.checkpoint.contents import (
    UNREADABLE,
    CheckpointError,
    Meta,
    first_line,
    read_arrays,
    read_meta,
    reading,
    step_folders,
)
from echotts.config import EncoderConfig, ModelConfig
from echotts.files import ASSETS
from echotts.latents import FACT
from echotts.model import Params
from echotts.model.parameters import expected_shapes, unflatten
from echotts.rundir.layout import CHECKPOINTS, STEP
from echotts.rundir.location import RunPath, run_path

LOGGER = logging.getLogger(__name__)

WeightsName = Literal["ema", "raw"]
StorageName = Literal["float32", "float16", "bfloat16"]
DEMO = "demo"  # names the built-in model
ITEM = {"ema": "ema", "raw": "params"}  # what it is called in a checkpoint


@dataclass(frozen=True)
class Weights:
    """Parameters (float32), the model they belong to, and what inference needs to know (as `interop.load_export`)."""

    params: Params
    config: ModelConfig
    metadata: dict[str, Any]


def load_weights(source: str | Path, weights: WeightsName = "ema") -> Weights:
    """The weights in an export (.safetensors), a published pickle (.pkl), a run directory or one of its checkpoints.

    "demo" is the built-in model. Run directories may be in a bucket (gs://bucket/run).
    """
    if gcs.is_bucket(source):
        return load_run(run_path(str(source)), weights)
    path = ASSETS / "model" / "demo.safetensors" if source == DEMO else Path(source).expanduser()
    if path.suffix == ".safetensors":
        return Weights(*interop.load_export(path))
    if path.suffix in (".pkl", ".pickle"):
        published = interop.load_published(path)
        about = {"weights": "raw", "step": published.step}
        if published.latent_scale is not None:
            about[FACT] = published.latent_scale
        return Weights(published.params, published.config, about)
    if path.is_dir():
        return load_run(path, weights)
    raise FileNotFoundError(
        f"{path}: no weights there; give a run directory, one of its checkpoints, a .safetensors or a published .pkl"
    )


def load_run(path: RunPath, weights: WeightsName = "ema") -> Weights:
    """The weights of the newest whole checkpoint of a run directory, or of the one step folder given."""
    if path.suffix and not isinstance(path, Path):
        raise ValueError(f"{path}: only run directories are read from a bucket: copy the file here first")
    folders = [path] if STEP.fullmatch(path.name) else step_folders(path / CHECKPOINTS) or step_folders(path)
    if not folders:
        raise FileNotFoundError(f"{path}: no checkpoint there; a run directory holds {CHECKPOINTS}/step_*")
    for folder in folders:
        try:
            with reading(folder):
                return _load_step(folder, weights)
        except UNREADABLE as error:
            LOGGER.warning("%s: cannot be read (%s)", folder, first_line(error))
    raise CheckpointError(f"{path}: no checkpoint there can be read; the newest is {folders[0].name}")


def export(
    run: str | Path, output: Path, weights: WeightsName = "ema", storage: StorageName = "float32"
) -> dict[str, Any]:
    """Writes the weights of a run (or of one of its checkpoints) as one file; returns their metadata.

    `.safetensors` is what inference loads; `.pkl` is the published layout, always float32.
    """
    if output.suffix not in (".safetensors", ".pkl"):
        raise ValueError(f"{output}: an export is named .safetensors (for inference) or .pkl (as published)")
    loaded = load_run(run_path(run), weights)
    params, metadata = jax.device_get(loaded.params), loaded.metadata
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".pkl":
        step, samples_seen = metadata["step"], metadata["samples_seen"]
        scale = metadata.get(FACT)
        interop.save_published(output, params, step=step, samples_seen=samples_seen, latent_scale=scale)
    else:
        interop.save_export(output, params, loaded.config, metadata, storage)
    return metadata


def describe(params: Params, config: ModelConfig, meta: Meta, weights: WeightsName) -> Weights:
    """Parameters with what a checkpoint says of them, as an export carries it."""
    data = meta.config["data"]
    metadata = meta.facts | {
        "silence": np.asarray(meta.facts["silence"], np.float32),
        "weights": weights,
        "step": meta.step,
        "samples_seen": meta.samples_seen,
        "buckets": {
            "frames": max(bucket["frames"] for bucket in data["buckets"]),
            "tokens": max(bucket["tokens"] for bucket in data["buckets"]),
            "reference_frames": data["reference_frames"],
        },
    }
    return Weights(params, config, metadata)


def _load_step(folder: RunPath, weights: WeightsName) -> Weights:
    meta = read_meta(folder)
    sizes = meta.config["model"]
    encoders = {name: EncoderConfig(**sizes[name]) for name in ("text", "speaker")}
    config = ModelConfig(**{**sizes, **encoders})
    here = SingleDeviceSharding(jax.local_devices()[0])
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        for path, leaf in expected_shapes(config).items()
    }
    params = read_arrays(folder, ITEM[weights], unflatten(shapes))
    return describe(params, config, meta, weights)
