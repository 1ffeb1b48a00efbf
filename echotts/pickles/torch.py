"""Reads PyTorch's zip files: members, tensor storages, and the names that the pickle inside may reference.

torch.save's layout (torch/serialization.py): `{root}/data.pkl`, `{root}/byteorder`, and one uncompressed member
`{root}/data/{key}` per storage. Sizes, offsets and strides are checked against the actual bytes.
"""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from echotts.pickles.files import guarded, run
from echotts.pickles.values import RestrictedPickleError, Spend, is_count, is_shape, plain_names, product, shown

LARGEST_DIRECTORY = 1 << 21  # bytes of a zip's central directory, enough for 45,000 members

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_torch_zip(path: str | Path) -> Any:
    """The object saved by torch.save at `path`, tensors as read-only numpy arrays (bfloat16 and float8 by ml_dtypes).

    Ordered dicts become dicts, parameters become arrays, dtypes and devices their names. Raises RestrictedPickleError
    (a ValueError) for a file that is malformed, in the format before PyTorch 1.6, a TorchScript archive, or that
    references anything but tensors and plain containers; FileNotFoundError and OSError as open().
    """
    with Path(path).open("rb") as file:
        head = file.read(512)
    if head[:2] != b"PK":
        if head.startswith(_LEGACY_TORCH) or head[257:262] == b"ustar":
            raise RestrictedPickleError(
                f"{path}: written before PyTorch 1.6: re-save it with torch.load and torch.save"
            )
        raise RestrictedPickleError(f"{path}: not a PyTorch zip file, or truncated: download it again")
    return guarded(path, "a PyTorch file", lambda: _read_archive(Path(path)))


class _Archive(io.FileIO):
    """A file that reads at most `limit` bytes at once: zipfile reads the central directory in one piece."""

    limit = LARGEST_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        if (left if size is None or size < 0 else min(size, left)) > self.limit:
            raise RestrictedPickleError(f"a central directory larger than {LARGEST_DIRECTORY} bytes")
        return super().read(size)


def _read_archive(path: Path) -> Any:
    with _Archive(path) as file, zipfile.ZipFile(file) as archive:
        size = file.limit = path.stat().st_size
        members = _members(archive, size)
        roots = [
            name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(roots) != 1:
            raise RestrictedPickleError("a zip file, but not by torch.save: it has no data.pkl")
        root = roots[0]
        if f"{root}constants.pkl" in members:
            raise RestrictedPickleError("a TorchScript archive, which contains code: torch.save the state_dict")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in members else b"little"
        if order != b"little":
            raise RestrictedPickleError(f"byte order {shown(str(order))}: save it on a little-endian machine")
        storages = _Storages(archive, root, members)
        data = memoryview(archive.read(f"{root}data.pkl"))
        return run(data, size, plain_names() | _TORCH, persistent=storages.load)


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's members by name: uncompressed, unique, and together no larger than the file."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = shown(info.filename)
        if info.filename in members:
            raise RestrictedPickleError(f"{name} occurs twice")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise RestrictedPickleError(f"{name} is compressed or encrypted: torch.save does neither")
        members[info.filename] = info
    if sum(info.file_size for info in members.values()) > size:
        raise RestrictedPickleError("its members overlap")
    return members


class _Storages:
    """The flat arrays behind tensors, each read once from the archive."""

    def __init__(self, archive: zipfile.ZipFile, root: str, members: dict[str, zipfile.ZipInfo]) -> None:
        self._archive, self._root, self._members = archive, root, members
        self._bytes: dict[str, bytes] = {}

    def load(self, identity: Any) -> "_Storage":
        """The storage with the persistent id ("storage", type, key, device, elements)."""
        if not (isinstance(identity, tuple) and len(identity) == 5 and identity[0] == "storage"):
            raise ValueError("a persistent id that is not a storage")
        _, kind, key, _, elements = identity
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or len(key) > 32 or not is_count(elements):
            raise ValueError("a malformed storage")
        member = f"{self._root}data/{key}"
        if member not in self._members:
            raise ValueError(f"storage {key} is missing")
        if key not in self._bytes:
            self._bytes[key] = self._archive.read(member)
        raw = self._bytes[key]
        if elements * kind.itemsize != len(raw):
            raise ValueError(
                f"storage {key} should have {elements} times {kind.itemsize} bytes, but has {len(raw)} bytes"
            )
        return _Storage(raw, kind.dtype)


class _StorageType:
    """Represents names such as torch.FloatStorage; dtype None is untyped bytes, whose dtype the tensor gives."""

    def __init__(self, dtype: np.dtype | None) -> None:
        self.dtype = dtype
        self.itemsize = 1 if dtype is None else dtype.itemsize


class _Storage:
    def __init__(self, raw: bytes, dtype: np.dtype | None) -> None:
        self.raw, self.dtype = raw, dtype


def _tensor(spend: Spend, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2; rest is requires_grad, hooks, metadata."""
    if not isinstance(storage, _Storage) or storage.dtype is None or len(rest) > 3 or any(rest[2:]):
        raise ValueError("a tensor without a storage, or with lazy conjugation or negation")
    return _view(spend, storage.raw, storage.dtype, offset, shape, strides)


def _typed_tensor(spend: Spend, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> np.ndarray:
    """torch._utils._rebuild_tensor_v3: untyped storage; rest is requires_grad, hooks, dtype, metadata."""
    if not isinstance(storage, _Storage) or len(rest) not in (3, 4) or any(rest[3:]):
        raise ValueError("a tensor without a storage")
    if not isinstance(rest[2], np.dtype):
        raise ValueError("a tensor of unknown dtype")
    return _view(spend, storage.raw, rest[2], offset, shape, strides)


def _view(spend: Spend, raw: bytes, dtype: np.dtype, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    """A strided view within its storage."""
    if not (is_count(offset) and is_shape(shape) and is_shape(strides) and len(shape) == len(strides)):
        raise ValueError("a tensor of impossible shape, strides or offset")
    stored = len(raw) // dtype.itemsize
    elements = product(shape)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if not elements:
        return np.zeros(shape, dtype)
    if last >= stored:
        raise ValueError(f"a tensor of shape {shown(str(shape))} exceeds its storage of {stored} elements")
    steps = tuple(stride * dtype.itemsize for stride in strides)
    array = np.ndarray(shape, dtype, raw, offset * dtype.itemsize, steps)
    if dtype == np.bool_:  # stored bytes may have any value
        spend(elements)
        array = array.view(np.uint8) != 0
    array.flags.writeable = False
    return array


def _parameter(_: Spend, data: Any, *__: Any) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise ValueError("a parameter without a tensor")
    return data


def _device(_: Spend, *parts: Any) -> str:
    return ":".join(shown(str(part)) for part in parts[:2] if isinstance(part, (str, int)))


def _size(spend: Spend, sizes: Any = ()) -> tuple[int, ...]:
    if not is_shape(sizes):
        raise ValueError("a size that is not a shape")
    return sizes


def torch_names() -> dict[str, Any]:
    """Storages, dtypes, and the functions that rebuild tensors from them."""
    special = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    dtypes = {name: np.dtype(getattr(ml_dtypes, name)) for name in special}
    plain = "bool uint8 int8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64 complex64 complex128"
    dtypes |= {name: np.dtype(name) for name in plain.split()}
    storages = {"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"}
    storages |= {"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"}
    storages |= {"ComplexFloat": "complex64", "ComplexDouble": "complex128"}
    return {
        "torch.storage.UntypedStorage": _StorageType(None),
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _typed_tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch.device": _device,
        "torch.Size": _size,
        **{f"torch.{name}Storage": _StorageType(dtypes[dtype]) for name, dtype in storages.items()},
        **{f"torch.{name}": dtype for name, dtype in dtypes.items()},
    }


_TORCH = torch_names()
