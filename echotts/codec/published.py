"""Reads published DACVAE and DAC weights, folding weight norm.

Both families' code writes `torch.save({"state_dict": ..., "metadata": {"kwargs": ...}})`; sizes come from the kwargs.
On the Hub, DAC is a safetensors file with a config.json, either with the same tensor names under a prefix
(hance-ai/descript-audio-codec-*, parler-tts/dac_*) or with those of transformers' DacModel (descript/dac_*). There the
sizes are inferred from the tensors, and the sample rate is read from config.json. Every tensor is looked up by name and
its shape compared with the sizes, so a file of another architecture is rejected at the first tensor that differs.
Names and layouts: facebookresearch/dacvae, descriptinc/descript-audio-codec, huggingface/transformers.
"""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from echotts.codec.config import CodecConfig
from echotts.codec.layers import Params
from echotts.codec.watermark import CHANNELS, MESSAGE_BITS, RATES
from echotts.pickles import read_torch_zip
from echotts.strict_json import load_json
from echotts.strict_tensors import open_tensors

log = logging.getLogger(__name__)

_SIZES = ("encoder_dim", "latent_dim", "decoder_dim", "codebook_dim", "sample_rate", "n_codebooks", "codebook_size")
_RATES = ("encoder_rates", "decoder_rates")
_LARGEST = 1 << 20
_DAC: dict[str, Any] = {  # defaults of descript-audio-codec's class
    "encoder_rates": (2, 4, 8, 8),
    "decoder_rates": (8, 8, 4, 2),
    "codebook_dim": 8,
    "sample_rate": 44100,
    "n_codebooks": 9,
}
_HUB_RATES = {"44khz": 44100, "24khz": 24000, "16khz": 16000}


def read_published(path: str | Path) -> tuple[Params, CodecConfig]:
    """Folded parameters of a .pth as NumPy arrays, with an entry "watermark" if the file has one, and the sizes.

    Raises ValueError if the file is malformed, hostile or not such a codec; the message names the first bad tensor.
    """
    content = read_torch_zip(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a state_dict")
    state, metadata = content.get("state_dict", content), content.get("metadata", {})
    kwargs = metadata.get("kwargs", {}) if isinstance(metadata, dict) else {}
    if not isinstance(state, dict) or not isinstance(kwargs, dict):
        raise ValueError(f"{path}: state_dict or metadata.kwargs is not a dict: is it the weights.pth of a codec?")
    quantized = any(str(key).startswith("quantizer.quantizers.") for key in state)
    config = config_from_kwargs(_dac_kwargs(kwargs, path) if quantized else kwargs | {"n_codebooks": 0}, path)
    return _params(state, config, path), config


def read_hub_layout(path: str | Path) -> tuple[Params, CodecConfig]:
    """Folded parameters and sizes of a DAC stored as model.safetensors beside a config.json, as on the Hub.

    Raises ValueError if the files are damaged or not a DAC.
    """
    config_path = Path(path).parent / "config.json"
    about = load_json(config_path.read_bytes(), config_path, dict[str, Any])
    rate = about.get("sampling_rate") or about.get("sample_rate")
    rate = rate or _HUB_RATES.get(str(about.get("model_type_by_sampling_freq")).lower())
    if rate is None:
        raise ValueError(f"{path}: the config.json beside it has no sampling_rate: add it, in Hz")
    with open_tensors(path) as file:
        state = {name: file.read(name) for name in file.names}
    state = _renamed(state)
    config = config_from_kwargs(_sizes_of(state, path) | {"sample_rate": rate}, path)
    return _params(state, config, path), config


def config_from_kwargs(kwargs: dict[str, Any], source: str | Path) -> CodecConfig:
    """Sizes from constructor arguments; missing ones default to the published DACVAE at 48 kHz."""
    sizes: dict[str, Any] = {}
    for name in _SIZES:
        if (value := kwargs.get(name)) is not None:
            sizes[name] = _size(value, name, source, least=0 if name == "n_codebooks" else 1)
    for name in _RATES:
        if (value := kwargs.get(name)) is not None:
            if not isinstance(value, list | tuple) or not 1 <= len(value) <= 16:
                raise ValueError(f"{source}: {name} must be a list of 1 to 16 rates")
            sizes[name] = tuple(_size(rate, name, source) for rate in value)
    try:
        return CodecConfig(**sizes)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _size(value: Any, name: str, source: str | Path, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
        raise ValueError(f"{source}: {name} must be an integer from {least} to {_LARGEST}")
    return value


def _dac_kwargs(kwargs: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """The kwargs with DAC's defaults filled in; `codebook_dim` may be a list with one number per codebook."""
    sizes = _DAC | {name: value for name, value in kwargs.items() if value is not None}
    dims = sizes["codebook_dim"]
    if isinstance(dims, list | tuple):
        if not dims or any(dim != dims[0] for dim in dims):
            raise ValueError(f"{source}: codebook_dim differs between codebooks, which is not supported")
        sizes["codebook_dim"] = dims[0]
    if "latent_dim" not in sizes:
        rates = sizes["encoder_rates"]
        width = _size(sizes.get("encoder_dim", 64), "encoder_dim", source)
        sizes["latent_dim"] = width * 2 ** (len(rates) if isinstance(rates, list | tuple) and len(rates) <= 16 else 0)
    return sizes


def _renamed(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under descript-audio-codec's own names, without prefix and converted from transformers' names."""
    state = {
        re.sub(r"^(dac|model)\.(?=(encoder|decoder|quantizer)\.)", "", name): value for name, value in state.items()
    }
    blocks = {match.group(1) for name in state if (match := re.match(r"decoder\.block\.(\d{1,2})\.", name))}
    return {_from_transformers(name, len(blocks)): value for name, value in state.items()} if blocks else state


def _from_transformers(name: str, blocks: int) -> str:
    """Maps a name of transformers' DacModel, which names layers and counts units from 1, to the original's."""
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    branch, up = ("block", 0) if side == "encoder" else ("model", 1)
    ends = {"conv1": 0, "snake1": blocks + 1, "conv2": blocks + 2}
    head, _, last = rest.rpartition(".")
    if head in ends:
        return f"{side}.{branch}.{ends[head]}.{last}"
    if match := re.fullmatch(r"block\.(\d{1,2})\.res_unit([123])\.(snake|conv)([12])", head):
        module = 2 * int(match[4]) - (2 if match[3] == "snake" else 1)
        return f"{side}.{branch}.{int(match[1]) + 1}.block.{int(match[2]) - 1 + 2 * up}.block.{module}.{last}"
    if match := re.fullmatch(r"block\.(\d{1,2})\.(snake1|conv1|conv_t1)", head):
        module = (0 if up else 3) + (match[2] != "snake1")
        return f"{side}.{branch}.{int(match[1]) + 1}.block.{module}.{last}"
    return name


def _sizes_of(state: dict[str, np.ndarray], path: str | Path) -> dict[str, Any]:
    """Constructor arguments inferred from the tensors of a DAC."""

    def shape(key: str, dimensions: int = 3) -> tuple[int, ...] | None:
        names = (f"{key}.weight", f"{key}.weight_v", f"{key}.{_NEW}.original1")
        found = next((state[name].shape for name in names if name in state), None)
        return found if found is not None and len(found) == dimensions else None

    def rates(pattern: str) -> list[int]:
        blocks = (shape(pattern.format(number)) for number in range(1, 17))
        return [block[2] // 2 for block in blocks if block is not None]

    first, last = shape("encoder.block.0"), shape("decoder.model.0")
    book = shape("quantizer.quantizers.0.codebook", 2)
    if first is None or last is None or book is None:
        raise ValueError(f"{path}: not an echotts codec and not a DAC: it lacks an encoder, decoder or codebooks")
    books = sum(bool(re.fullmatch(r"quantizer\.quantizers\.\d{1,4}\.codebook\.weight", name)) for name in state)
    return {
        "encoder_dim": first[0],
        "encoder_rates": rates("encoder.block.{}.block.4"),
        "latent_dim": last[1],
        "decoder_dim": last[0],
        "decoder_rates": rates("decoder.model.{}.block.1"),
        "n_codebooks": books,
        "codebook_size": book[0],
        "codebook_dim": book[1],
    }


class Tensors:
    """The tensors of a file; each is checked against its expected shape (PyTorch's layouts) when it is taken."""

    def __init__(self, state: dict[Any, Any], path: str | Path) -> None:
        self._path = path
        self._left = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}

    @property
    def unused(self) -> list[str]:
        return [str(key) for key in self._left]

    def take(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key not in self._left:
            raise ValueError(f"{self._path}: tensor {key} is missing: the file is incomplete or of another codec")
        tensor = self._left.pop(key)
        if tensor.shape != shape:
            raise ValueError(f"{self._path}: tensor {key} has shape {tensor.shape}, but the sizes require {shape}")
        if tensor.dtype.kind in "cb" or not np.isfinite(tensor).all():
            raise ValueError(f"{self._path}: tensor {key} is not made of finite numbers")
        return tensor.astype(np.float32)

    def weight(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """A kernel in PyTorch's layout, folded if it is weight-normed (old or new parametrization)."""
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
    """gain * direction / norm, with the norm over all but the first axis; bitwise reproducible on every machine.

    Squares of float32 numbers are exact in float64 and are added in a fixed order (pairwise halving), so the weights
    hash does not depend on a library's order of summation.
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


def _params(state: dict[Any, Any], config: CodecConfig, path: str | Path) -> Params:
    tensors = Tensors(state, path)
    params = main_path(tensors, config)
    if not config.quantized and "decoder.wm_model.msg_processor.msg_processor.weight" in state:
        params["watermark"] = watermark_path(tensors, config)
    if tensors.unused:
        log.warning("%s: %d tensors are unused, the first is %s", path, len(tensors.unused), tensors.unused[0])
    return params


def main_path(tensors: Tensors, config: CodecConfig) -> Params:
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
    numbers = (2, 3, 4) if config.quantized else (4, 5, 8)  # DACVAE's watermark has the numbers between
    decoder: Params = {"stem": tensors.conv("decoder.model.0", config.latent_dim, width, 7), "blocks": []}
    for number, stride in enumerate(config.decoder_rates, 1):
        key = f"decoder.model.{number}.block"
        block = {"snake": tensors.alpha(f"{key}.0", width), "up": tensors.up(f"{key}.1", width, width // 2, stride)}
        width //= 2
        decoder["blocks"].append(block | {"units": units(key, numbers, width)})
    head = [f"decoder.model.{last + 1 + n}" if config.quantized else f"{_HEAD}.{n}" for n in range(2)]
    decoder["snake"] = tensors.alpha(head[0], width)
    decoder["head"] = tensors.conv(head[1], width, 1, 7)
    return {"encoder": encoder, "bottleneck": _bottleneck(tensors, config), "decoder": decoder}


_HEAD = "decoder.wm_model.encoder_block.pre"


def _bottleneck(tensors: Tensors, config: CodecConfig) -> Params:
    features, channels = config.latent_dim, config.codebook_dim
    if not config.quantized:
        inward = tensors.conv("quantizer.in_proj", features, 2 * channels, 1)
        return {"in": inward, "out": tensors.conv("quantizer.out_proj", channels, features, 1)}
    quantizers = []
    for number in range(config.n_codebooks):
        key = f"quantizer.quantizers.{number}"
        inward = tensors.conv(f"{key}.in_proj", features, channels, 1)
        codebook = tensors.take(f"{key}.codebook.weight", (config.codebook_size, channels))
        outward = tensors.conv(f"{key}.out_proj", channels, features, 1)
        quantizers.append({"in": inward, "codebook": codebook, "out": outward})
    return {"quantizers": quantizers}


def watermark_path(tensors: Tensors, config: CodecConfig) -> Params:
    """Reads the watermark. Its sizes are not in kwargs; they are those of the published model."""
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
