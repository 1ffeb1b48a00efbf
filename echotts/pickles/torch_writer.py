"""Writes arrays and plain containers as `torch.save` would, without torch: a zip of one pickle and raw storages.

`torch.load(path, weights_only=True)` reads it. Opcodes are those of pickle protocol 2 (pickletools); a tensor is a call
of torch._utils._rebuild_tensor_v2 with a storage identified by a persistent id.
"""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from echotts.files import atomic_write

_STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "f8": "DoubleStorage", "i8": "LongStorage", "i4": "IntStorage"}
_ROOT = "archive"


def write_torch_zip(path: str | Path, content: Any) -> None:
    """Writes dicts, lists, tuples, strings, numbers, None and arrays (as tensors). TypeError for anything else."""
    storages: list[np.ndarray] = []
    pickled = b"\x80\x02" + _value(content, storages) + b"."
    with atomic_write(Path(path)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
        file.writestr(f"{_ROOT}/data.pkl", pickled)
        file.writestr(f"{_ROOT}/byteorder", "little")
        for number, array in enumerate(storages):
            file.writestr(f"{_ROOT}/data/{number}", array.tobytes())
        file.writestr(f"{_ROOT}/version", "3\n")


def _value(value: Any, storages: list[np.ndarray]) -> bytes:
    if isinstance(value, np.ndarray):
        return _tensor(value, storages)
    if isinstance(value, dict):
        items = b"".join(_value(key, storages) + _value(item, storages) for key, item in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list | tuple):
        items = b"".join(_value(item, storages) for item in value)
        return b"](" + items + b"e" if isinstance(value, list) else b"(" + items + b"t"
    if isinstance(value, str):
        encoded = value.encode()
        return b"X" + struct.pack("<I", len(encoded)) + encoded
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"\x8a" + bytes([9]) + value.to_bytes(9, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    raise TypeError(f"a {type(value).__name__} cannot be written to a torch file")


def _tensor(array: np.ndarray, storages: list[np.ndarray]) -> bytes:
    kind = array.dtype.kind + str(array.dtype.itemsize)
    if kind not in _STORAGES:
        raise TypeError(f"an array of {array.dtype} cannot be written to a torch file")
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    key, size = str(len(storages)), array.size
    storages.append(array)
    strides = tuple(step // array.itemsize for step in array.strides)
    storage = b"(" + _value("storage", []) + _global("torch", _STORAGES[kind])
    storage += _value(key, []) + _value("cpu", []) + _value(size, []) + b"tQ"
    about = _value(0, []) + _value(array.shape, []) + _value(strides, []) + _value(False, [])
    return (
        _global("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage
        + about
        + _global("collections", "OrderedDict")
        + b")RtR"
    )


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()
