"""Untrusted safetensors files: types and shapes are checked before a tensor is read, values after."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

STORED = ("F32", "F16", "BF16")


class TensorFile:
    """An open file. `header` is its metadata, `names` are those of its tensors."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self.header: dict[str, str] = file.metadata() or {}
        self.names: list[str] = list(file.keys())

    def stored(self, name: str) -> np.ndarray:
        """One tensor in its stored type, unchecked: to be copied."""
        return self._file.get_tensor(name)

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """One tensor as float32; needs memory for that and for its own bytes.

        Raises ValueError naming the tensor if it is missing, has another shape than `shape`, is not of floating-point
        numbers or not finite.
        """
        if name not in self.names:
            raise ValueError(f"{self._path}: tensor {name} is missing: copy the file again")
        about = self._file.get_slice(name)
        found, dtype = tuple(about.get_shape()), about.get_dtype()
        unfit = f"{self._path}: tensor {name} is not made of finite floats"
        if shape is not None and found != shape:
            raise ValueError(f"{self._path}: tensor {name} has shape {found}, but its config requires {shape}")
        if dtype not in STORED:
            raise ValueError(f"{unfit}: it is {dtype}, expected {', '.join(STORED)}")
        tensor = np.asarray(self._file.get_tensor(name), np.float32)
        if not np.isfinite(tensor).all():
            raise ValueError(f"{unfit}: {tensor.size - int(np.isfinite(tensor).sum())} of {tensor.size} are not")
        return tensor


@contextmanager
def open_tensors(path: str | Path) -> Iterator[TensorFile]:
    """Opens the file at `path`. Raises FileNotFoundError, or ValueError if it is not a valid safetensors file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            yield TensorFile(path, file)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error}): copy it again") from error
