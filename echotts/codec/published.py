"""The published DACVAE file: `torch.save({"state_dict": ..., "metadata": {"kwargs": ...}})`, weight norm not folded.

Sizes come from the file's kwargs. Every tensor is looked for by name and held against the shape those sizes give, so
a file of another architecture is told by the first tensor that differs. Names and layouts: facebookresearch/dacvae.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from echotts.codec.dacvae import CodecConfig
from echotts.codec.layers import Params
from echotts.codec.watermark import CHANNELS, MESSAGE_BITS, RATES
from echotts.pickles import read_torch_zip

log = logging.getLogger(__name__)

_SIZES = ("encoder_dim", "latent_dim", "decoder_dim", "codebook_dim", "sample_rate")
_RATES = ("encoder_rates", "decoder_rates")
_LARGEST = 1 << 20


def read_published(path: str | Path) -> tuple[Params, CodecConfig]:
    """Folded parameters as numpy arrays, with the entry "watermark" where the file has one, and the sizes.

    Raises ValueError for a file that is malformed, hostile, or of another codec; the message names the first tensor.
    """
    content = read_torch_zip(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a state_dict")
    state, metadata = content.get("state_dict", content), content.get("metadata", {})
    kwargs = metadata.get("kwargs", {}) if isinstance(metadata, dict) else {}
    if not isinstance(state, dict) or not isinstance(kwargs, dict):
        raise ValueError(f"{path}: state_dict or metadata.kwargs is not a dict: is it a codec's weights.pth?")
    if any(str(key).startswith("quantizer.quantizers.") for key in state):
        raise ValueError(f"{path}: an RVQ codec (DAC); only DACVAE files are read: give weights with a VAE bottleneck")
    config = config_from_kwargs(kwargs, path)
    tensors = _Tensors(state, path)
    params = _main_path(tensors, config)
    if "decoder.wm_model.msg_processor.msg_processor.weight" in state:
        params["watermark"] = _watermark(tensors, config)
    if tensors.unused:
        log.warning("%s: %d tensors are not used, %s first", path, len(tensors.unused), tensors.unused[0])
    return params, config


def config_from_kwargs(kwargs: dict[str, Any], source: str | Path) -> CodecConfig:
    """Sizes from the file's constructor arguments; what is missing is as in the published 48 kHz model."""
    sizes: dict[str, Any] = {}
    for name in _SIZES:
        if (value := kwargs.get(name)) is not None:
            sizes[name] = _size(value, name, source)
    for name in _RATES:
        if (value := kwargs.get(name)) is not None:
            if not isinstance(value, list | tuple) or not 1 <= len(value) <= 16:
                raise ValueError(f"{source}: {name} must be a list of 1 to 16 rates")
            sizes[name] = tuple(_size(rate, name, source) for rate in value)
    try:
        return CodecConfig(**sizes)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _size(value: Any, name: str, source: str | Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise ValueError(f"{source}: {name} must be an integer from 1 to {_LARGEST}")
    return value


class _Tensors:
    """The tensors of a file, each held against the shape it must have (PyTorch's layouts)."""

    def __init__(self, state: dict[Any, Any], path: str | Path) -> None:
        self._path = path
        self._left = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}

    @property
    def unused(self) -> list[str]:
        return [str(key) for key in self._left]

    def take(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key not in self._left:
            raise ValueError(f"{self._path}: tensor {key} is missing: not a DACVAE, or cut down")
        tensor = self._left.pop(key)
        if tensor.shape != shape:
            raise ValueError(f"{self._path}: tensor {key} has shape {tensor.shape}, its kwargs make it {shape}")
        if tensor.dtype.kind in "cb" or not np.isfinite(tensor).all():
            raise ValueError(f"{self._path}: tensor {key} is not made of finite numbers")
        return tensor.astype(np.float32)

    def weight(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """A kernel in PyTorch's layout, folded if it is weight-normed in the old or the new way."""
        gain_shape = (shape[0], *(1 for _ in shape[1:]))
        for gain, direction in (("weight_g", "weight_v"), (f"{_NEW}.original0", f"{_NEW}.original1")):
            if f"{key}.{direction}" in self._left:
                return fold(self.take(f"{key}.{gain}", gain_shape), self.take(f"{key}.{direction}", shape))
        return self.take(f"{key}.weight", shape)

    def conv(self, key: str, inputs: int, outputs: int, width: int) -> Params:
        kernel = self.weight(key, (outputs, inputs, width))
        bias = self.take(f"{key}.bias", (outputs,))
        return {"kernel": np.ascontiguousarray(kernel.transpose(2, 1, 0)), "bias": bias}  # (out, in, k) -> (k, in, out)

    def up(self, key: str, inputs: int, outputs: int, stride: int) -> Params:
        kernel = self.weight(key, (inputs, outputs, 2 * stride))
        bias = self.take(f"{key}.bias", (outputs,))
        return {"kernel": np.ascontiguousarray(kernel.transpose(2, 0, 1)), "bias": bias}  # (in, out, k) -> (k, in, out)

    def alpha(self, key: str, width: int) -> np.ndarray:
        return self.take(f"{key}.alpha", (1, width, 1)).reshape(width)

    def unit(self, key: str, width: int) -> Params:
        return {
            "snake_in": self.alpha(f"{key}.block.0", width),
            "wide": self.conv(f"{key}.block.1", width, width, 7),
            "snake_out": self.alpha(f"{key}.block.2", width),
            "point": self.conv(f"{key}.block.3", width, width, 1),
        }

    def plain_unit(self, key: str, width: int) -> Params:
        return {
            "wide": self.conv(f"{key}.block.1", width, width // 2, 3),
            "point": self.conv(f"{key}.block.3", width // 2, width, 1),
        }

    def lstm(self, key: str, width: int) -> list[Params]:
        def layer(n: int) -> Params:
            biases = [self.take(f"{key}.bias_{kind}_l{n}", (4 * width,)) for kind in ("ih", "hh")]
            kernels = [self.take(f"{key}.weight_{kind}_l{n}", (4 * width, width)) for kind in ("ih", "hh")]
            inputs, hidden = (np.ascontiguousarray(kernel.T) for kernel in kernels)
            return {"input": inputs, "hidden": hidden, "bias": biases[0] + biases[1]}

        return [layer(0), layer(1)]


_NEW = "parametrizations.weight"


def fold(gain: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """gain * direction / norm, the norm over all but the first axis; the same bits on every machine.

    The squares of float32 numbers are exact in float64, and they are added in a fixed order (halves onto halves), so
    that the weights' hash does not depend on how a library orders a sum.
    """
    v = direction.astype(np.float64)
    squares = np.square(v).reshape(len(v), -1)
    while squares.shape[1] > 1:
        half = (squares.shape[1] + 1) // 2
        upper = squares[:, half:]
        squares = squares[:, :half].copy()
        squares[:, : upper.shape[1]] += upper
    norm = np.sqrt(squares).reshape(gain.shape)
    return (gain.astype(np.float64) * v / norm).astype(np.float32)


def _main_path(tensors: _Tensors, config: CodecConfig) -> Params:
    def units(key: str, first: tuple[int, int, int], width: int) -> list[Params]:
        return [tensors.unit(f"{key}.{n}", width) for n in first]

    width = config.encoder_dim
    last = len(config.encoder_rates)
    encoder: Params = {"stem": tensors.conv("encoder.block.0", 1, width, 7), "blocks": []}
    for number, stride in enumerate(config.encoder_rates, 1):
        key = f"encoder.block.{number}.block"
        block = {"units": units(key, (0, 1, 2), width), "snake": tensors.alpha(f"{key}.3", width)}
        encoder["blocks"].append(block | {"down": tensors.conv(f"{key}.4", width, 2 * width, 2 * stride)})
        width *= 2
    encoder["snake"] = tensors.alpha(f"encoder.block.{last + 1}", width)
    encoder["head"] = tensors.conv(f"encoder.block.{last + 2}", width, config.latent_dim, 3)

    width = config.decoder_dim
    decoder: Params = {"stem": tensors.conv("decoder.model.0", config.latent_dim, width, 7), "blocks": []}
    for number, stride in enumerate(config.decoder_rates, 1):
        key = f"decoder.model.{number}.block"
        block = {"snake": tensors.alpha(f"{key}.0", width), "up": tensors.up(f"{key}.1", width, width // 2, stride)}
        width //= 2
        decoder["blocks"].append(block | {"units": units(key, (4, 5, 8), width)})
    head = "decoder.wm_model.encoder_block.pre"
    decoder["snake"] = tensors.alpha(f"{head}.0", width)
    decoder["head"] = tensors.conv(f"{head}.1", width, 1, 7)
    bottleneck = {
        "in": tensors.conv("quantizer.in_proj", config.latent_dim, 2 * config.codebook_dim, 1),
        "out": tensors.conv("quantizer.out_proj", config.codebook_dim, config.latent_dim, 1),
    }
    return {"encoder": encoder, "bottleneck": bottleneck, "decoder": decoder}


def _watermark(tensors: _Tensors, config: CodecConfig) -> Params:
    """The watermark's sizes are not in kwargs: they are those of the published model."""
    head, tail = "decoder.wm_model.encoder_block", "decoder.wm_model.decoder_block"
    inner, message = CHANNELS[-1], 128
    blocks = len(config.decoder_rates)
    params: Params = {"stem": tensors.conv(f"{head}.pre.3", 1, CHANNELS[0], 7), "down": [], "up": []}
    for level, stride in enumerate(RATES):
        low, high = CHANNELS[level], CHANNELS[level + 1]
        key = f"decoder.model.{blocks - level}.block"
        unit, after = tensors.plain_unit(f"{key}.7", low), tensors.plain_unit(f"{key}.6", low)
        params["down"].append({"unit": unit, "down": tensors.conv(f"{key}.11", low, high, 2 * stride)})
        params["up"].insert(0, {"up": tensors.up(f"{key}.3", high, low, stride), "unit": after})
    params["lstm_in"] = tensors.lstm(f"{head}.post.0.lstm", inner)
    params["squeeze"] = tensors.conv(f"{head}.post.2", inner, message, 7)
    table = "decoder.wm_model.msg_processor.msg_processor.weight"
    params["message"] = tensors.take(table, (2 * MESSAGE_BITS, message))
    params["expand"] = tensors.conv(f"{tail}.pre.0", message, inner, 7)
    params["lstm_out"] = tensors.lstm(f"{tail}.pre.1.lstm", inner)
    params["head"] = tensors.conv(f"{tail}.post.1", CHANNELS[0], 1, 7)
    return params
