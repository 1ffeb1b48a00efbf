"""Loads weights from runs, exports and published files."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from echotts import gcs
from echotts.checkpoint import adapters
from echotts.checkpoint.adapters import Adapter, BaseDiffersError
from echotts.checkpoint.best import best_step
from echotts.checkpoint.contents import Meta, checkpoints_at, newest_readable, read_checked, read_meta, stored_shapes
from echotts.checkpoint.export_file import load_duration, load_export, load_student, read_export_header
from echotts.checkpoint.facts import Facts, Limits
from echotts.checkpoint.interop import Published, load_published
from echotts.config import ModelConfig, read_model_config
from echotts.files import MODELS
from echotts.latents import FACT, LatentScale
from echotts.model import Params
from echotts.model.adapters import adapter_shapes
from echotts.model.duration import duration_shapes
from echotts.model.parameters import expected_shapes, unflatten
from echotts.model.student import student_shapes
from echotts.rundir.layout import STEP, step_name
from echotts.rundir.location import RunPath, run_path

WeightsName = Literal["ema", "raw"]
ITEM = {"ema": "ema", "raw": "params"}  # name in a checkpoint
BESIDE = {"duration": "a duration predictor", "distil": "a student"}  # what a run adds to a base, by its method


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adam:
    """Adam's state: number of updates, and the first and second moments, each like the parameters."""

    count: Any  # an int, or a () int32 array
    mu: Params
    nu: Params


@dataclass(frozen=True)
class Weights:
    """Parameters (float32), their model configuration, and the facts that inference needs.

    `duration` is a duration predictor for them (model/duration.py), `student` a student (model/student.py).
    """

    params: Params
    config: ModelConfig
    facts: Facts
    adam: Adam | None = None
    duration: Params | None = None
    student: Params | None = None


@dataclass(frozen=True)
class Stored:
    """A checkpoint of a run: what it trained (`params` of `method`, see config.tune) and its metadata."""

    folder: RunPath
    meta: Meta
    config: ModelConfig
    method: str
    rank: int
    params: Params
    weights: WeightsName
    adam: Adam | None

    @property
    def base(self) -> str:
        """The location of the frozen weights, as given to the run."""
        return str(self.meta.config["run"]["init_from"])

    def described(self) -> Weights:
        """The parameters with the facts of the checkpoint."""
        return describe(self.params, self.config, self.meta, self.weights)

    def adapter(self) -> Adapter:
        """What a run of `--tune lora` trained."""
        about = adapters.About(
            format=adapters.ADAPTER_FORMAT,
            base=self.meta.facts.base or "",
            base_name=self.base,
            rank=self.rank,
            weights=self.weights,
            step=self.meta.step,
            samples_seen=self.meta.samples_seen,
        )
        return Adapter(jax.device_get(self.params), self.config, about)


def load_weights(
    source: str | Path, weights: WeightsName = "ema", with_optimizer: bool = False, adapter: str | Path | None = None
) -> Weights:
    """The weights in an export (.safetensors), a published pickle (.pkl), a run directory or one of its checkpoints.

    "demo" and "english" are the built-in models. Run directories may be in a bucket (gs://bucket/run).
    `with_optimizer` also loads the Adam state of a pickle; ValueError if it has none. `adapter` is an adapter file, or
    a run that trained one, to merge; BaseDiffersError if it belongs to other weights.
    """
    if adapter is not None:
        base, found = load_weights(source, weights), load_adapter(adapter, weights)
        params = adapters.merged(base.params, found, str(source), str(adapter))
        about = found.about
        told = {"weights": about.weights, "step": about.step, "samples_seen": about.samples_seen}
        return dataclasses.replace(base, params=params, facts=dataclasses.replace(base.facts, **told))
    if gcs.is_bucket(source):
        return load_run(run_path(str(source)), weights)
    path = file_of(source)
    if path.suffix == ".safetensors":
        return Weights(*load_export(path), duration=load_duration(path), student=load_student(path))
    if path.suffix in (".pkl", ".pickle"):
        published = load_published(path)
        fields = {"weights": "raw", "step": published.step, "samples_seen": published.samples_seen}
        facts = Facts.from_dict(fields | {FACT: published.latent_scale}, path)
        return Weights(published.params, published.config, facts, _published_adam(path, published, with_optimizer))
    if path.is_dir():
        return load_run(path, weights)
    raise FileNotFoundError(
        f"{path}: no weights found; give a run directory, one of its checkpoints, a .safetensors or a published .pkl"
    )


def load_run(path: RunPath, weights: WeightsName = "ema", with_optimizer: bool = False) -> Weights:
    """The weights of a run directory (its best or newest complete checkpoint), or of the given step folder.

    Adapters are merged into their base, a duration predictor or student is added to it; the base must be where the run
    found it. `with_optimizer` also loads the state of AdamW, if the run has one.
    """
    stored = read_run(path, weights, with_optimizer)
    if stored.method == "inversion":
        raise ValueError(f"{path}: holds a voice, not a model: echotts voice save NAME {path}")
    if stored.method == "lora":
        try:
            return load_weights(stored.base, weights, adapter=str(stored.folder))
        except FileNotFoundError as error:
            raise BaseDiffersError(
                f"{path}: holds adapters of {stored.base}, which is not here: give that model as --checkpoint, and "
                "the run as --adapter"
            ) from error
    if stored.method in BESIDE:
        return with_base(stored)
    return dataclasses.replace(stored.described(), adam=stored.adam)


def load_adapter(source: str | Path, weights: WeightsName = "ema") -> Adapter:
    """The adapter in a file, or in a run directory or checkpoint of `--tune lora`."""
    if not gcs.is_bucket(source) and Path(source).expanduser().suffix == ".safetensors":
        return adapters.load_adapter(Path(source).expanduser())
    stored = read_run(run_path(str(source)), weights)
    if stored.method != "lora":
        raise ValueError(f"{source}: trained no adapter (--tune {stored.method}): give a run of --tune lora, or a file")
    return stored.adapter()


def load_inversion(source: str | Path, weights: WeightsName = "ema") -> tuple[np.ndarray, Facts]:
    """(codec latents (m, c) of the trained voice, facts) of a run of `--tune inversion`."""
    stored = read_run(run_path(str(source)), weights)
    if stored.method != "inversion":
        raise ValueError(f"{source}: trained no voice (--tune {stored.method}): give a run of --tune inversion")
    scale = LatentScale.from_json(stored.meta.facts.latent_scale, stored.config.latent_channels)
    latent = scale.restore(np.asarray(stored.params[adapters.VOICE]))
    return np.asarray(latent, np.float32), stored.described().facts


def read_run(path: RunPath, weights: WeightsName = "ema", with_optimizer: bool = False) -> Stored:
    """The best or newest readable checkpoint of a run directory, or the given step folder."""
    if path.suffix and not isinstance(path, Path):
        raise ValueError(f"{path}: only run directories can be read from a bucket: copy the file to a local disk first")
    folders = checkpoints_at(path)
    best = None if STEP.fullmatch(path.name) else best_step(path)
    folders.sort(key=lambda folder: best is not None and folder.name == step_name(best), reverse=True)  # stable
    return newest_readable(path, folders, lambda folder: _read_step(folder, weights, with_optimizer))


def read_about(source: str | Path) -> tuple[ModelConfig, Facts]:
    """(configuration, facts) of weights; cheap for an export and a run, the whole file is read for a pickle."""
    if gcs.is_bucket(source) or Path(source).expanduser().is_dir():
        stored_in = run_path(str(source))
        meta = newest_readable(stored_in, checkpoints_at(stored_in), read_meta)
        facts = dataclasses.replace(meta.facts, buckets=Limits.of(meta.config["data"]))
        return read_model_config(meta.config["model"], f"{source}: model"), facts
    path = file_of(source)
    if path.suffix == ".safetensors":
        return read_export_header(path)
    loaded = load_weights(path)
    return loaded.config, loaded.facts


def describe(params: Params, config: ModelConfig, meta: Meta, weights: WeightsName) -> Weights:
    """Parameters with the facts of their checkpoint, as in an export."""
    about = {"weights": weights, "step": meta.step, "samples_seen": meta.samples_seen}
    facts = dataclasses.replace(meta.facts, **about, buckets=Limits.of(meta.config["data"]))
    return Weights(params, config, facts)


def _read_step(folder: RunPath, weights: WeightsName, with_optimizer: bool) -> Stored:
    meta = read_meta(folder)
    config = read_model_config(meta.config["model"], f"{folder}: model")
    method, rank = adapters.stored_tune(meta.config)
    items = {ITEM[weights]: _trained_shapes(method, rank, config, meta)}
    with_optimizer = with_optimizer and meta.config["optim"].get("method", "adamw") == "adamw"
    if with_optimizer:
        items["opt_state"] = stored_shapes(folder, "opt_state")
    arrays = read_checked(folder, items)
    adam = _find_adam(arrays["opt_state"]) if with_optimizer else None
    return Stored(folder, meta, config, method, rank, arrays[ITEM[weights]], weights, adam)


def file_of(source: str | Path) -> Path:
    """The path of a source that is no bucket; "demo" and "english" are the built-in models."""
    return MODELS[str(source)] if source in MODELS else Path(source).expanduser()


def with_base(stored: Stored) -> Weights:
    """The frozen weights of a run with what it trained beside them.

    BaseDiffersError if they are not where the run found them, or others are.
    """
    what, trained = BESIDE[stored.method], jax.device_get(stored.params)
    try:
        base = load_weights(stored.base, stored.weights)
    except FileNotFoundError as error:
        raise BaseDiffersError(
            f"{stored.folder}: holds {what} for {stored.base}, which is not here: put it there again"
        ) from error
    adapters.check_base(stored.meta.facts.base or "", base.params, stored.base, f"{stored.folder}: {what} for weights")
    if stored.method == "duration":
        return dataclasses.replace(base, duration=trained)
    facts = dataclasses.replace(base.facts, student=stored.meta.facts.student)
    return dataclasses.replace(base, student=trained, facts=facts)


def _trained_shapes(method: str, rank: int, config: ModelConfig, meta: Meta) -> Params:
    if method == "inversion":
        frames = Limits.of(meta.config["data"]).reference_frames
        return {adapters.VOICE: jax.ShapeDtypeStruct((frames, config.latent_channels), np.float32)}
    if method == "duration":
        return unflatten(duration_shapes(config))
    if method == "distil":
        return unflatten(student_shapes(config, rank))
    return unflatten(dict(adapter_shapes(config, rank) if method == "lora" else expected_shapes(config)))


def _published_adam(path: Path, published: Published, wanted: bool) -> Adam | None:
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
