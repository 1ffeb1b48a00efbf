"""The export file for inference: a safetensors with parameters under our names, and facts in its header."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from echotts.checkpoint.facts import Facts
from echotts.config import ModelConfig, read_model_config, to_dict
from echotts.files import atomic_write
from echotts.model.duration import DURATION, duration_shapes
from echotts.model.parameters import Params, expected_shapes, flatten, unflatten
from echotts.model.student import STUDENT, student_shapes
from echotts.strict_json import load_json
from echotts.strict_tensors import open_tensors

EXPORT_FORMAT = "echotts 1"
SILENCE = "silence"
HEADER_BYTES = 1 << 21  # limit of a field in the header; the largest is a SentencePiece tokenizer

StorageName = Literal["float32", "float16", "bfloat16"]


def save_export(
    path: str | Path,
    params: Params,
    config: ModelConfig,
    facts: Facts,
    storage: StorageName = "float32",
    duration: Params | None = None,
    student: Params | None = None,
) -> None:
    """Writes the file for inference: the parameters under our stacked names.

    The facts go to the header beside `config`, except the silence, which becomes a float32 tensor. So do those of the
    duration predictor, if there is one; readers that know none ignore them. A student, which the facts must mention, is
    stored like the parameters.
    """
    tensors = {name: np.ascontiguousarray(leaf, storage) for name, leaf in flatten(params).items()}
    tensors |= duration_tensors(duration) | student_tensors(student, storage)
    header = facts.to_dict()
    if silence := header.pop(SILENCE, None):
        tensors[SILENCE] = np.asarray(silence, np.float32)
    header |= {"format": EXPORT_FORMAT, "config": to_dict(config)}
    with atomic_write(Path(path)) as temporary:
        save_file(tensors, temporary, {name: json.dumps(value) for name, value in header.items()})


def add_tensors(base: Path, path: Path, added: dict[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes a copy of an export with these tensors and facts; all others keep their bits.

    The tensors are `duration_tensors` or `student_tensors`, and replace those that it has.
    """
    (prefix,) = {name.partition("/")[0] for name in added}
    with open_tensors(base) as file:
        tensors = {name: file.stored(name) for name in file.names if not name.startswith(f"{prefix}/")}
        header = file.header | {name: json.dumps(value) for name, value in facts.items()}
    with atomic_write(path) as temporary:
        save_file(tensors | added, temporary, header)


def load_duration(path: str | Path) -> Params | None:
    """The duration predictor in an export, float32; None if it has none. Errors as in `load_export`."""
    path = Path(path)
    config, _ = read_export_header(path)
    with open_tensors(path) as file:
        if not any(name.startswith(f"{DURATION}/") for name in file.names):
            return None
        return unflatten({name: file.read(name, leaf.shape) for name, leaf in duration_shapes(config).items()})


def load_student(path: str | Path) -> Params | None:
    """The student in an export, float32; None if it has none. Errors as in `load_export`."""
    path = Path(path)
    config, facts = read_export_header(path)
    if facts.student is None:
        return None
    shapes = student_shapes(config, facts.student.rank)
    with open_tensors(path) as file:
        return unflatten({name: file.read(f"{STUDENT}/{name}", leaf.shape) for name, leaf in shapes.items()})


def load_export(path: str | Path) -> tuple[Params, ModelConfig, Facts]:
    """(params as float32 NumPy arrays, config, facts) of an export.

    Raises FileNotFoundError, and ValueError if the file is truncated, not an export, has a header of wrong types, or
    has tensors that do not match its config or are not finite.
    """
    path = Path(path)
    config, facts = read_export_header(path)
    with open_tensors(path) as file:
        params = {name: file.read(name, leaf.shape) for name, leaf in _expected_shapes(config, path).items()}
        if SILENCE in file.names:
            silence = file.read(SILENCE, (1, config.latent_channels)).tolist()
            facts = dataclasses.replace(facts, silence=silence)
    return unflatten(params), config, facts


def read_export_header(path: Path) -> tuple[ModelConfig, Facts]:
    """(config, facts without the silence) of an export; errors as in `load_export`."""
    with open_tensors(path) as file:
        header = _parsed_header(file.header, path)
    facts = Facts.from_dict(header, f"{path}: header")
    if "config" not in header:
        raise ValueError(f"{path}: header: missing required field config")
    return read_model_config(header["config"], f"{path}: config in the header"), facts


def _parsed_header(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The header's fields, parsed from JSON, without the format."""
    if header.get("format") != json.dumps(EXPORT_FORMAT):
        raise ValueError(f"{path}: not an echotts export (its header lacks {EXPORT_FORMAT!r})")
    return {
        name: load_json(text, f"{path}: {name[:60]!r} in the header", max_bytes=HEADER_BYTES)
        for name, text in header.items()
        if name != "format"
    }


def duration_tensors(duration: Params | None) -> dict[str, np.ndarray]:
    """The tensors of a duration predictor in an export."""
    return {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in flatten(duration or {}).items()}


def student_tensors(student: Params | None, storage: StorageName) -> dict[str, np.ndarray]:
    """The tensors of a student in an export."""
    return {f"{STUDENT}/{name}": np.ascontiguousarray(leaf, storage) for name, leaf in flatten(student or {}).items()}


def _expected_shapes(config: ModelConfig, path: Path) -> dict[str, Any]:
    try:
        return expected_shapes(config)
    except (TypeError, OverflowError) as error:  # the sizes multiply to more than an array can hold
        raise ValueError(f"{path}: the sizes in its config are impossible") from error
