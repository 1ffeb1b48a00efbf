"""Exports runs to single files: for inference, or in the published layout."""

from pathlib import Path

import jax

from echotts import gcs
from echotts.checkpoint.adapters import save_adapter
from echotts.checkpoint.export_file import StorageName, add_tensors, duration_tensors, save_export, student_tensors
from echotts.checkpoint.facts import Facts
from echotts.checkpoint.interop import published_opt_state, save_published
from echotts.checkpoint.weights import BESIDE, Stored, Weights, WeightsName, file_of, load_weights, read_run, with_base
from echotts.rundir.location import run_path

MERGE = "merge an adapter with echotts export --adapter, save a voice with echotts voice save"


def export(
    run: str | Path, output: Path, weights: WeightsName | None = None, storage: StorageName = "float32"
) -> Facts:
    """Writes the weights of a run (or of one of its checkpoints) to one file; returns their facts.

    Of a run of `--tune lora` the adapter alone is written; `export_merged` writes it with its base. Of a run of `--tune
    duration` the base is written with the predictor: its tensors and facts as they are, if it is an export itself.
    `.safetensors` is for inference, with the EMA weights unless `weights` says otherwise. `.pkl` is the published
    layout, always float32: the raw weights with their optimizer state, or the EMA weights without it.
    """
    if output.suffix not in (".safetensors", ".pkl"):
        raise ValueError(f"{output}: an export must be .safetensors (for inference) or .pkl (published layout)")
    published = output.suffix == ".pkl"
    weights = weights or ("raw" if published else "ema")
    with_optimizer = published and weights == "raw"
    stored = read_run(run_path(run), weights, with_optimizer)
    what = "give a .safetensors" if stored.method in BESIDE else MERGE
    if stored.method == "inversion" or (published and stored.method in ("lora", *BESIDE)):
        raise ValueError(f"{run}: --tune {stored.method} has no weights of its own to write to {output}: {what}")
    if stored.method == "lora":
        save_adapter(output, stored.adapter(), storage)
        return stored.described().facts
    if stored.method in BESIDE:
        return _export_with_base(stored, output, storage)
    if with_optimizer and stored.adam is None:
        raise ValueError(f"{run}: was not trained with AdamW, whose state a .pkl stores: use --weights ema")
    params, facts = jax.device_get(stored.params), stored.described().facts
    if published:
        adam = jax.device_get(stored.adam)
        opt_state = adam and published_opt_state(adam.count, adam.mu, adam.nu)
        save_published(
            output,
            params,
            step=facts.step or 0,
            samples_seen=facts.samples_seen or 0,
            opt_state=opt_state,
            latent_scale=facts.latent_scale,
        )
    else:
        save_export(output, params, stored.config, facts, storage)
    return facts


def export_merged(base: str | Path, adapter: str | Path, output: Path, storage: StorageName = "float32") -> Facts:
    """Writes a base with an adapter (a file, or a run that trained one) merged into it, as .safetensors."""
    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: merged weights are written as .safetensors")
    return _save(output, load_weights(base, adapter=adapter), storage)


def _export_with_base(stored: Stored, output: Path, storage: StorageName) -> Facts:
    loaded = with_base(stored)
    if gcs.is_bucket(stored.base) or (file := file_of(stored.base)).suffix != ".safetensors":
        return _save(output, loaded, storage)
    if stored.method == "duration":
        add_tensors(file, output, duration_tensors(loaded.duration), {})
    else:
        about = {"student": loaded.facts.to_dict()["student"]}
        add_tensors(file, output, student_tensors(loaded.student, storage), about)
    return loaded.facts


def _save(output: Path, loaded: Weights, storage: StorageName) -> Facts:
    params = jax.device_get(loaded.params)
    save_export(output, params, loaded.config, loaded.facts, storage, loaded.duration, loaded.student)
    return loaded.facts
