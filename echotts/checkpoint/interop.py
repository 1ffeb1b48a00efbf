"""Published checkpoints, read and written, and the export file for inference.

Published BlockDiT checkpoints (LAION, dacvae-echo) are pickles of one dict: `params` (one nested dict of arrays, one
entry per layer), `opt_state`, `step`, `samples_seen`; a file may also hold only the parameters. They are read only by
the restricted reader in `echotts.pickles`. All sizes are inferred from array shapes, never taken from a preset.
"""

import dataclasses
import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from safetensors.numpy import save_file

from echotts.checkpoint.facts import Facts
from echotts.config import DtypeName, EncoderConfig, ModelConfig, read_model_config, to_dict
from echotts.files import atomic_write
from echotts.latents import FACT, ScaleJson
from echotts.model.dit import BlockDiT
from echotts.model.duration import DURATION, duration_shapes
from echotts.model.parameters import Params, build, expected_shapes, flatten, unflatten
from echotts.model.student import STUDENT, student_shapes
from echotts.pickles import read_pickle
from echotts.strict_json import load_json
from echotts.strict_tensors import open_tensors

StorageName = Literal["float32", "float16", "bfloat16"]
EXPORT_FORMAT = "echotts 1"
SILENCE = "silence"
PUBLISHED_PICKLE_PROTOCOL = 4
HEADER_BYTES = 1 << 21  # limit of a field in an export's header; the largest is a SentencePiece tokenizer

# stacked prefix (ours) -> prefix of the numbered blocks (published)
STACKS = {
    "blocks/": "TransformerBlock_",
    "text_encoder/blocks/": "text_encoder/TextTransformerBlock_",
    "speaker_encoder/blocks/": "speaker_encoder/EncoderTransformerBlock_",
}


def published_path(path: str, layer: int | None = None) -> str:
    """The published name of one of our parameters; `layer` is needed for stacked ones."""
    for ours, theirs in STACKS.items():
        if path.startswith(ours):
            path = f"{theirs}{layer}/{path.removeprefix(ours)}"
    owner, _, leaf = path.rpartition("/")
    parent, _, name = owner.rpartition("/")
    # published attention projections are inside an inner module
    return f"{owner}/Dense_0/{leaf}" if parent.endswith("attention") and name.startswith("w") else path


def published_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Published path -> shape of every tensor of a model of this config."""
    return {
        published_path(path, layer): leaf.shape if layer is None else leaf.shape[1:]
        for path, leaf in expected_shapes(config).items()
        for layer in _layers(path, leaf)
    }


def params_to_published(params: Mapping[str, Any]) -> Params:
    """Converts our stacked parameters (or a tree of the same shape, such as Adam's moments) to the published dict."""
    published = {}
    for path, leaf in flatten(params).items():
        for layer in _layers(path, leaf):
            published[published_path(path, layer)] = np.asarray(leaf if layer is None else leaf[layer])
    return unflatten(published)


def params_from_published(tree: Mapping[str, Any]) -> Params:
    """Converts the published nested dict to our stacked parameters; dtypes are kept. ValueError names a mismatch."""
    theirs = {path: np.asarray(leaf) for path, leaf in flatten(_unboxed(tree)).items()}
    params = {}
    for path, whole in expected_shapes(infer_config(tree)).items():
        layers = list(_layers(path, whole))
        wanted = whole.shape if layers == [None] else whole.shape[1:]
        leaves = [_take(theirs, published_path(path, layer), wanted) for layer in layers]
        params[path] = leaves[0] if layers == [None] else np.stack(leaves)
    if theirs:
        raise ValueError(
            f"parameters: {len(theirs)} tensors do not belong to a BlockDiT, the first is {next(iter(theirs))}"
        )
    return unflatten(params)


def infer_config(tree: Mapping[str, Any]) -> ModelConfig:
    """The model configuration inferred from a published parameter tree; compute dtype float32, no remat.

    eps (1e-5) and RoPE's theta (10000) cannot be inferred. ValueError names a missing tensor.
    """
    flat = flatten(_unboxed(tree))

    def shape(path: str) -> tuple[int, ...]:
        if path not in flat:
            raise ValueError(f"parameters: {path} is missing, this is not a BlockDiT checkpoint")
        return tuple(np.shape(flat[path]))

    def encoder(stack: str, width: int) -> EncoderConfig:
        first = f"{STACKS[stack]}0"
        return EncoderConfig(
            width=width,
            depth=_count_blocks(flat, STACKS[stack]),
            heads=shape(f"{first}/attention/q_norm/weight")[0],
            mlp_width=shape(f"{first}/mlp/w1/kernel")[1],
        )

    channels, width = shape("in_proj/kernel")
    vocabulary, text_width = shape("text_encoder/text_embedding/embedding")
    patch_width, speaker_width = shape("speaker_encoder/in_proj/kernel")
    return ModelConfig(
        latent_channels=channels,
        width=width,
        depth=_count_blocks(flat, STACKS["blocks/"]),
        heads=shape("TransformerBlock_0/attention/q_norm/weight")[0],
        mlp_width=shape("TransformerBlock_0/mlp/w1/kernel")[1],
        text=encoder("text_encoder/blocks/", text_width),
        speaker=encoder("speaker_encoder/blocks/", speaker_width),
        vocabulary=vocabulary,
        patch=patch_width // channels,
        timestep_width=shape("cond_dense_0/kernel")[0],
        adaln_rank=shape("TransformerBlock_0/attn_adaln/adaln_rank_shift/kernel")[1],
        compute_dtype="float32",
    )


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published checkpoint. `opt_state` is the file's content as plain containers; None in a params-only file."""

    model: BlockDiT
    config: ModelConfig
    params: Params  # ours: stacked, float32
    step: int
    samples_seen: int
    opt_state: Any
    latent_scale: Any = None  # only in files written by this package (echotts.latents)

    def moments(self) -> tuple[Params, Params] | None:
        """Adam's (mu, nu), stacked like our parameters; None if the file has no optimizer state."""
        return find_moments(self.opt_state, self.config)


def load_published(path: str | Path, dtype: DtypeName | None = None) -> Published:
    """Reads a published pickle; the model computes in float32 unless a dtype is given.

    A file may hold only the parameters, and in float16 or bfloat16; they are converted to float32. Raises
    FileNotFoundError, RestrictedPickleError if the file needs anything but arrays and containers, ValueError for other
    contents.
    """
    path = Path(path)
    content = read_pickle(path)
    try:
        tree, state = _params_and_state(content)
        params = jax.tree.map(
            lambda leaf: jax.device_put(np.asarray(leaf, np.float32), may_alias=False), params_from_published(tree)
        )
        config = dataclasses.replace(infer_config(tree), compute_dtype=dtype or "float32")
        step, samples_seen = _count(state, "step"), _count(state, "samples_seen")
    except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: {error}") from error
    return Published(
        model=build(config, params),
        config=config,
        params=params,
        step=step,
        samples_seen=samples_seen,
        opt_state=state.get("opt_state"),
        latent_scale=state.get(FACT),
    )


def save_published(
    path: str | Path,
    params: Params,
    *,
    step: int,
    samples_seen: int,
    opt_state: Any = None,
    latent_scale: ScaleJson | None = None,
) -> None:
    """Writes a published pickle: NumPy arrays in plain dicts. `opt_state`: see `published_opt_state`.

    `latent_scale` (see echotts.latents), which the published layout lacks, is added as an entry of its own if given.
    """
    content = {
        "params": params_to_published(params),
        "opt_state": jax.tree.map(np.asarray, opt_state),
        "step": int(step),
        "samples_seen": int(samples_seen),
    } | ({} if latent_scale is None else {FACT: latent_scale})
    with atomic_write(Path(path)) as temporary, temporary.open("wb") as file:
        pickle.dump(content, file, protocol=PUBLISHED_PICKLE_PROTOCOL)


def published_opt_state(count: int, mu: Params, nu: Params) -> Any:
    """The state of optax's chain(clip, adamw(schedule, mask)), with moments under the published parameter names.

    It consists of optax's own objects, so that `pickle.load` returns what `optimizer.update` of such a chain expects.
    """
    steps = np.asarray(count, np.int32)
    adam = optax.ScaleByAdamState(count=steps, mu=params_to_published(mu), nu=params_to_published(nu))  # pyright: ignore
    decay = optax.MaskedState(inner_state=optax.EmptyState())
    return (optax.EmptyState(), (adam, decay, optax.ScaleByScheduleState(count=steps)))  # pyright: ignore


def find_moments(opt_state: Any, config: ModelConfig) -> tuple[Params, Params] | None:
    """Adam's (mu, nu) in a published optimizer state, stacked. Found by shape, not by class or position.

    The pickled classes of that state are not documented, so any tree with the parameters' paths and shapes counts; the
    first of the two is mu.
    """
    found = list(_trees_like(_unboxed(opt_state), published_shapes(config)))
    if not found:
        return None
    if len(found) != 2:
        raise ValueError(f"opt_state: {len(found)} trees have the parameters' shapes, Adam has 2 (mu, nu)")
    return params_from_published(found[0]), params_from_published(found[1])


def save_export(
    path: str | Path,
    params: Params,
    config: ModelConfig,
    facts: Facts,
    storage: StorageName = "float32",
    duration: Params | None = None,
    student: Params | None = None,
) -> None:
    """Writes the file for inference: one safetensors with parameters under our stacked names.

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


def _params_and_state(content: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(published parameter tree, the rest) of a full checkpoint or a params-only file."""
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a dict, the file contains a {type(content).__name__}")
    if "params" not in content:
        return content, {}
    tree = content["params"]
    if isinstance(tree, Mapping) and set(tree) == {"params"}:  # Flax's collection of variables
        tree = tree["params"]
    if not isinstance(tree, Mapping):
        raise ValueError(f"params is a {type(tree).__name__}, not a nested dict of arrays")
    return tree, content


def _count(state: Mapping[str, Any], name: str) -> int:
    """A non-negative integer in the file (int or 0-d array); 0 if missing."""
    value = state.get(name, 0)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 1 << 63:
        raise ValueError(f"{name} is not an integer from 0 to 2**63 - 1")
    return int(value)


def _trees_like(node: Any, wanted: Mapping[str, tuple[int, ...]]) -> Iterator[Params]:
    if isinstance(node, Mapping):
        if {path: getattr(leaf, "shape", None) for path, leaf in flatten(node).items()} == wanted:
            yield dict(node)
            return
        node = list(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            yield from _trees_like(child, wanted)


def _layers(path: str, leaf: Any) -> Iterator[int | None]:
    if any(path.startswith(stack) for stack in STACKS):
        yield from range(leaf.shape[0])
    else:
        yield None


def _take(flat: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in flat:
        raise ValueError(f"parameters: {name} {shape} is missing")
    leaf = flat.pop(name)
    if leaf.shape != shape:
        raise ValueError(f"parameters: {name} has shape {leaf.shape}, the other tensors require {shape}")
    if leaf.dtype.kind not in "fV" or not np.isfinite(leaf).all():  # bfloat16 has kind V
        raise ValueError(f"parameters: {name} is not made of finite floating-point numbers")
    return leaf


def _count_blocks(flat: Mapping[str, Any], prefix: str) -> int:
    return len({path.removeprefix(prefix).split("/")[0] for path in flat if path.startswith(prefix)})


def _unboxed(tree: Any) -> Any:
    """Unwraps boxed leaves (Flax's LogicallyPartitioned, read as a dict with the array under `value`)."""
    if isinstance(tree, list | tuple):
        return [_unboxed(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    if "value" in tree and not isinstance(tree["value"], Mapping):
        return tree["value"]
    return {name: _unboxed(value) for name, value in tree.items()}
