"""Loads weights from runs, exports and published files, and exports runs to single files."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from echotts import gcs
from echotts.checkpoint import interop
from echotts.checkpoint.contents import (
    Meta,
    newest_readable,
    read_arrays,
    read_digests,
    read_meta,
    step_folders,
    stored_shapes,
)
from echotts.checkpoint.digests import array_digests
from echotts.checkpoint.facts import Facts, Limits
from echotts.config import ModelConfig, read_model_config
from echotts.files import ASSETS
from echotts.latents import FACT
from echotts.model import Params
from echotts.model.parameters import expected_shapes, unflatten
from echotts.rundir.layout import CHECKPOINTS, STEP
from echotts.rundir.location import RunPath, run_path

WeightsName = Literal["ema", "raw"]
StorageName = Literal["float32", "float16", "bfloat16"]
DEMO = "demo"  # the built-in model
ITEM = {"ema": "ema", "raw": "params"}  # name in a checkpoint


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adam:
    """Adam's state: number of updates, and the first and second moments, each like the parameters."""

    count: Any  # an int, or a () int32 array
    mu: Params
    nu: Params


@dataclass(frozen=True)
class Weights:
    """Parameters (float32), their model configuration, and the facts that inference needs."""

    params: Params
    config: ModelConfig
    facts: Facts
    adam: Adam | None = None


def load_weights(source: str | Path, weights: WeightsName = "ema", with_optimizer: bool = False) -> Weights:
    """The weights in an export (.safetensors), a published pickle (.pkl), a run directory or one of its checkpoints.

    "demo" is the built-in model. Run directories may be in a bucket (gs://bucket/run). `with_optimizer` also loads the
    Adam state of a pickle; ValueError if it has none.
    """
    if gcs.is_bucket(source):
        return load_run(run_path(str(source)), weights)
    path = ASSETS / "model" / "demo.safetensors" if source == DEMO else Path(source).expanduser()
    if path.suffix == ".safetensors":
        return Weights(*interop.load_export(path))
    if path.suffix in (".pkl", ".pickle"):
        published = interop.load_published(path)
        fields = {"weights": "raw", "step": published.step, "samples_seen": published.samples_seen}
        facts = Facts.from_dict(fields | {FACT: published.latent_scale}, path)
        return Weights(published.params, published.config, facts, _published_adam(path, published, with_optimizer))
    if path.is_dir():
        return load_run(path, weights)
    raise FileNotFoundError(
        f"{path}: no weights found; give a run directory, one of its checkpoints, a .safetensors or a published .pkl"
    )


def load_run(path: RunPath, weights: WeightsName = "ema", with_optimizer: bool = False) -> Weights:
    """The weights of the newest complete checkpoint of a run directory, or of the given step folder.

    `with_optimizer` also loads the state of AdamW, if the run has one.
    """
    if path.suffix and not isinstance(path, Path):
        raise ValueError(f"{path}: only run directories can be read from a bucket: copy the file to a local disk first")
    folders = [path] if STEP.fullmatch(path.name) else step_folders(path / CHECKPOINTS) or step_folders(path)
    if not folders:
        raise FileNotFoundError(f"{path}: no checkpoint found; a run directory contains {CHECKPOINTS}/step_*")
    return newest_readable(path, folders, lambda folder: _load_step(folder, weights, with_optimizer))


def export(
    run: str | Path, output: Path, weights: WeightsName | None = None, storage: StorageName = "float32"
) -> Facts:
    """Writes the weights of a run (or of one of its checkpoints) to one file; returns their facts.

    `.safetensors` is for inference, with the EMA weights unless `weights` says otherwise. `.pkl` is the published
    layout, always float32: the raw weights with their optimizer state, or the EMA weights without it.
    """
    if output.suffix not in (".safetensors", ".pkl"):
        raise ValueError(f"{output}: an export must be .safetensors (for inference) or .pkl (published layout)")
    published = output.suffix == ".pkl"
    with_optimizer = published and weights != "ema"
    loaded = load_run(run_path(run), weights or ("raw" if published else "ema"), with_optimizer)
    if with_optimizer and loaded.adam is None:
        raise ValueError(f"{run}: was not trained with AdamW, whose state a .pkl stores: use --weights ema")
    params, facts = jax.device_get(loaded.params), loaded.facts
    output.parent.mkdir(parents=True, exist_ok=True)
    if published:
        adam = jax.device_get(loaded.adam)
        opt_state = adam and interop.published_opt_state(adam.count, adam.mu, adam.nu)
        interop.save_published(
            output,
            params,
            step=facts.step or 0,
            samples_seen=facts.samples_seen or 0,
            opt_state=opt_state,
            latent_scale=facts.latent_scale,
        )
    else:
        interop.save_export(output, params, loaded.config, facts, storage)
    return facts


def describe(params: Params, config: ModelConfig, meta: Meta, weights: WeightsName) -> Weights:
    """Parameters with the facts of their checkpoint, as in an export."""
    about = {"weights": weights, "step": meta.step, "samples_seen": meta.samples_seen}
    facts = dataclasses.replace(meta.facts, **about, buckets=Limits.of(meta.config["data"]))
    return Weights(params, config, facts)


def _load_step(folder: RunPath, weights: WeightsName, with_optimizer: bool) -> Weights:
    meta, digests = read_meta(folder), read_digests(folder)
    config = read_model_config(meta.config["model"], f"{folder}: model")
    items = {ITEM[weights]: unflatten(dict(expected_shapes(config)))}
    with_optimizer = with_optimizer and meta.config["optim"].get("method", "adamw") == "adamw"
    if with_optimizer:
        items["opt_state"] = stored_shapes(folder, "opt_state")
    here = SingleDeviceSharding(jax.local_devices()[0])
    arrays = {}
    for name, shapes in items.items():
        placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
        arrays[name] = read_arrays(folder, name, placed)
    if what := digests.changed_in({name: array_digests(tree) for name, tree in arrays.items()}) if digests else "":
        raise ValueError(what)
    adam = _find_adam(arrays["opt_state"]) if with_optimizer else None
    return dataclasses.replace(describe(arrays[ITEM[weights]], config, meta, weights), adam=adam)


def _published_adam(path: Path, published: interop.Published, wanted: bool) -> Adam | None:
    moments = published.moments() if wanted else None
    if wanted and moments is None:
        raise ValueError(f"{path}: has no optimizer state: start from its weights alone, without resume_optimizer")
    return moments and Adam(_first_count(published.opt_state, published.step), *moments)


def _first_count(opt_state: Any, step: int) -> int:
    """Adam's update count: the first integer scalar in its state, or the step if there is none."""
    for leaf in jax.tree.leaves(opt_state):
        if np.ndim(leaf) == 0 and np.issubdtype(np.asarray(leaf).dtype, np.integer):
            return int(leaf)
    return step


def _find_adam(opt_state: Any) -> Adam:
    """Adam's part of optax's state, given as plain containers. ValueError if there is none."""
    nodes = [opt_state]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict) and {"count", "mu", "nu"} <= set(node):
            return Adam(int(node["count"]), node["mu"], node["nu"])
        if isinstance(node, dict | list | tuple):
            nodes += node.values() if isinstance(node, dict) else node
    raise ValueError("opt_state: contains no Adam state")
