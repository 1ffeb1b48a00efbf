"""Writes a codec in the published .pth layout: {"state_dict", "metadata": {"kwargs"}}, with weight norm.

The layout is the one that published.py reads. The same traversal of the modules is used, with functions that write
tensors in place of functions that read them. The reference implementations open the file with
`torch.load(path, weights_only=True)`.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from echotts.codec import published
from echotts.codec.config import CodecConfig
from echotts.codec.layers import Params
from echotts.pickles.torch_writer import write_torch_zip


def write_published(path: str | Path, params: Params, config: CodecConfig) -> None:
    """Writes folded parameters, including any watermark, under the names of the reference implementation.

    Convolutions of the main path are split back into weight-norm gain and direction. Each watermark LSTM gets two
    biases, one of them zero.
    """
    names = Names(normed=True)
    tree = published.main_path(names, config)
    if "watermark" in params:
        tree["watermark"] = published.watermark_path(Names(normed=False), config)
    state: dict[str, np.ndarray] = {}
    for write, value in zip(jax.tree.leaves(tree), jax.tree.leaves(dict(params)), strict=True):
        state |= write(np.asarray(value, np.float32))
    kwargs = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    if not config.quantized:  # the original's constructor accepts these and ignores them
        kwargs |= {"n_codebooks": 16, "quantizer_dropout": False}
    write_torch_zip(path, {"state_dict": state, "metadata": {"kwargs": kwargs}})


class Names(published.Tensors):
    """Takes the place of a file's tensors: methods return functions from an array to the named tensors to write."""

    def __init__(self, *, normed: bool) -> None:
        self._normed = normed

    def take(self, key: str, shape: tuple[int, ...]) -> Any:
        return lambda value: {key: value.reshape(shape)}

    def conv(self, key: str, inputs: int, outputs: int, width: int) -> Params:
        return {"kernel": self._kernel(key, (2, 1, 0)), "bias": self.take(f"{key}.bias", (outputs,))}

    def up(self, key: str, inputs: int, outputs: int, stride: int) -> Params:
        return {"kernel": self._kernel(key, (1, 2, 0)), "bias": self.take(f"{key}.bias", (outputs,))}

    def alpha(self, key: str, width: int) -> Any:
        return self.take(f"{key}.alpha", (1, width, 1))

    def lstm(self, key: str, width: int) -> list[Params]:
        def layer(n: int) -> Params:
            return {
                "input": lambda value: {f"{key}.weight_ih_l{n}": value.T},
                "hidden": lambda value: {f"{key}.weight_hh_l{n}": value.T},
                "bias": lambda value: {f"{key}.bias_ih_l{n}": value, f"{key}.bias_hh_l{n}": 0 * value},
            }

        return [layer(0), layer(1)]

    def _kernel(self, key: str, axes: tuple[int, int, int]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        def write(value: np.ndarray) -> dict[str, np.ndarray]:
            kernel = value.transpose(axes)
            if not self._normed:
                return {f"{key}.weight": kernel}
            gain = np.sqrt(np.sum(np.square(kernel, dtype=np.float64), axis=(1, 2), keepdims=True))
            return {f"{key}.weight_g": gain.astype(np.float32), f"{key}.weight_v": kernel}

        return write
