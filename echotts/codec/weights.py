"""A codec's weights as a safetensors file with the sizes in its header, and their hash.

Parameters are folded and named by their path in the tree, for example "decoder.blocks.0.up.kernel". They may be stored
as float16; they are loaded, used and hashed as float32.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from safetensors.numpy import save_file

from echotts.codec.backbone import abstract_params
from echotts.codec.config import CodecConfig
from echotts.codec.layers import Params
from echotts.codec.published import config_from_kwargs
from echotts.codec.watermark import init_watermark
from echotts.files import atomic_write
from echotts.strict_json import load_json
from echotts.strict_tensors import open_tensors

FORMAT = "echotts.codec"


def save_codec(
    path: str | Path,
    params: Params,
    config: CodecConfig,
    codec_id: str,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Writes the folded parameters, including any watermark, with the sizes and the codec id in the header."""
    header = {"format": FORMAT, "kind": config.kind, "id": codec_id, "config": json.dumps(asdict(config))}
    tensors = {name: np.ascontiguousarray(tensor.astype(dtype)) for name, tensor in flatten(params)}
    with atomic_write(Path(path)) as temporary:
        save_file(tensors, temporary, metadata=header)


def read_codec(path: str | Path) -> tuple[Params, CodecConfig, str]:
    """Parameters as float32 NumPy arrays, sizes and id from a file of `save_codec`.

    Raises ValueError if the file is damaged, is not a codec, or its tensors do not match its sizes.
    """
    with open_tensors(path) as file:
        header = file.header
        config = _config(header, path)
        tensors = {name: file.read(name) for name in file.names}
    _check(tensors, config, path)
    return unflatten(tensors), config, header.get("id") or Path(path).stem


def hash_weights(params: Params) -> str:
    """SHA-256 over names, shapes and float32 values, sorted by name: independent of the file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(flatten(params)):
        digest.update(f"{name} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor, dtype="<f4").data)
    return digest.hexdigest()


def flatten(params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Dotted names and arrays of a tree of dicts and lists, in order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path), np.asarray(leaf)


def unflatten(tensors: dict[str, Any]) -> Params:
    """The inverse of `flatten`: entries 0, 1, ... become lists."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = tensor
    return _lists(tree)


def _lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    children = {key: _lists(child) for key, child in node.items()}
    return [children[str(n)] for n in range(len(children))] if "0" in children else children


def _config(header: dict[str, str], path: str | Path) -> CodecConfig:
    if header.get("format") != FORMAT or header.get("kind") not in ("dacvae", "dac"):
        raise ValueError(f"{path}: not an echotts codec: convert the weights with `echotts codec convert`")
    if "config" not in header:
        raise ValueError(f"{path}: no config in the header: convert the weights again")
    kwargs = load_json(header["config"], f"{path}: config in the header", dict[str, Any])
    config = config_from_kwargs(kwargs, path)
    if config.kind != header["kind"]:
        raise ValueError(
            f"{path}: the header names {header['kind']}, but its config is for {config.kind}: convert the weights again"
        )
    return config


def is_own_format(path: str | Path) -> bool:
    """Whether a safetensors file was written by `save_codec`, by its header; False for a damaged file."""
    try:
        with open_tensors(path) as file:
            return file.header.get("format") == FORMAT
    except ValueError:
        return False


def _check(tensors: dict[str, np.ndarray], config: CodecConfig, path: str | Path) -> None:
    """Checks that exactly the expected tensors are present with the right shapes; the watermark is all or nothing."""
    try:
        expected = dict(_shapes(abstract_params(config)))
    except (TypeError, OverflowError) as error:  # the sizes multiply to more than an array can hold
        raise ValueError(f"{path}: the sizes in its config are impossible") from error
    if any(name.startswith("watermark.") for name in tensors):
        expected |= {f"watermark.{name}": shape for name, shape in _watermark_shapes(tensors, path)}
    for name, shape in expected.items():
        if name not in tensors:
            raise ValueError(f"{path}: tensor {name} is missing: download the file again")
        if tensors[name].shape != shape:
            raise ValueError(f"{path}: tensor {name} has shape {tensors[name].shape}, but its config requires {shape}")
    if more := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"{path}: unknown tensor {more[0]}: is this a codec file?")


def _watermark_shapes(tensors: dict[str, np.ndarray], path: str | Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Shapes of a watermark as deep as the file's; widths and rates are inferred from its downsampling kernels."""
    kernels = []
    while (name := f"watermark.down.{len(kernels)}.down.kernel") in tensors:
        kernels.append(tensors[name].shape)
    message = tensors.get("watermark.message", np.zeros(0)).shape
    if not kernels or any(len(shape) != 3 for shape in kernels) or len(message) != 2:
        raise ValueError(f"{path}: its watermark is incomplete: download the file again")
    channels = (kernels[0][1], *(shape[2] for shape in kernels))
    rates = tuple(shape[0] // 2 for shape in kernels)
    make = init_watermark
    return _shapes(jax.eval_shape(lambda: make(jax.random.key(0), channels, rates, message[1], message[0] // 2)))


def _shapes(tree: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path), leaf.shape


def to_device(params: Params, device: Any = None) -> Params:
    """The tree as JAX arrays, on `device` if given."""
    return jax.device_put(params, device, may_alias=False)
