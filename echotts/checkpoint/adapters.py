"""Adapter files: low-rank adapters (model/adapters.py) of one base, without the base, as safetensors.

The header has the base's hash and configuration, so that an adapter is merged only into the weights it was trained for.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from safetensors.numpy import save_file

from echotts.checkpoint.digests import array_digests, json_digest
from echotts.checkpoint.facts import Count
from echotts.config import MAX_RANK, ModelConfig, read_model_config, to_dict
from echotts.files import atomic_write
from echotts.model import Params
from echotts.model.adapters import adapter_shapes, merge_adapters
from echotts.model.parameters import flatten, unflatten
from echotts.strict_json import check_type, load_json
from echotts.strict_tensors import open_tensors

ADAPTER_FORMAT = "echotts adapter 1"
HEADER, HEADER_BYTES = "adapter", 1 << 16
VOICE = "speaker_latent"  # the only parameter of an inversion: (m, c), in the model's latent scale
SHOWN = 12  # digits of a hash in messages


class BaseDiffersError(ValueError):
    """An adapter or a voice belongs to other weights."""


@dataclass(frozen=True, kw_only=True)
class About:
    """The metadata of an adapter. `base_name` is what the base was called when the adapter was trained."""

    format: str
    base: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    base_name: Annotated[str, msgspec.Meta(max_length=4096)]
    rank: Annotated[int, msgspec.Meta(ge=1, le=MAX_RANK)]
    weights: str
    step: Count
    samples_seen: Count


@dataclass(frozen=True)
class Adapter:
    """Adapters (float32), the configuration of the model they belong to, and their metadata."""

    params: Params
    config: ModelConfig
    about: About


def weights_hash(params: Params) -> str:
    """A hash of a model's float32 parameters, whatever file they come from."""
    return json_digest(array_digests(params))


def save_adapter(path: Path, adapter: Adapter, storage: str = "float32") -> None:
    tensors = {name: np.ascontiguousarray(leaf, storage) for name, leaf in flatten(adapter.params).items()}
    header = {HEADER: vars(adapter.about), "config": to_dict(adapter.config)}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, {name: json.dumps(value, sort_keys=True) for name, value in header.items()})


def load_adapter(path: str | Path) -> Adapter:
    """Reads an adapter file. Raises FileNotFoundError, or ValueError if it is damaged or not an adapter."""
    with open_tensors(path) as file:
        if HEADER not in file.header or "config" not in file.header:
            raise ValueError(f"{path}: not an adapter: export one from a run of echotts train --tune lora")
        fields = load_json(file.header[HEADER], f"{path}: header", dict[str, Any], max_bytes=HEADER_BYTES)
        about = check_type(fields, f"{path}: header", About)
        if about.format != ADAPTER_FORMAT:
            raise ValueError(f"{path}: adapter format {about.format[:40]!r}, this version reads {ADAPTER_FORMAT!r}")
        stored = load_json(file.header["config"], f"{path}: config in the header", max_bytes=HEADER_BYTES)
        config = read_model_config(stored, f"{path}: config in the header")
        try:
            shapes = adapter_shapes(config, about.rank)
        except (TypeError, OverflowError) as error:  # the sizes multiply to more than an array can hold
            raise ValueError(f"{path}: the sizes in its config are impossible") from error
        params = {name: file.read(name, leaf.shape) for name, leaf in shapes.items()}
    return Adapter(unflatten(params), config, about)


def merged(params: Params, adapter: Adapter, base: str, where: str) -> Params:
    """The base's parameters with the adapter; `base` and `where` name both in the error for an adapter of another base.

    Raises BaseDiffersError with both hashes.
    """
    check_base(adapter.about.base, params, base, f"{where}: an adapter of {adapter.about.base_name}")
    return merge_adapters(params, adapter.params)


def check_base(wanted: str, params: Params, base: str, what: str) -> None:
    """BaseDiffersError, with both hashes, unless the parameters are those with the wanted hash."""
    found = weights_hash(params)
    if found != wanted:
        raise BaseDiffersError(
            f"{what} with hash {wanted[:SHOWN]}, but {base} has {found[:SHOWN]}: use it with the weights that it was "
            "trained with"
        )


def stored_tune(config: Mapping[str, Any]) -> tuple[str, int]:
    """(method, rank) in the stored configuration of a run; ("none", 0) for runs of older versions."""
    tune = config.get("tune")
    method, rank = (tune.get("method"), tune.get("rank")) if isinstance(tune, Mapping) else (None, None)
    if not isinstance(method, str) or not isinstance(rank, int):
        return "none", 0
    return method, rank
