"""Reads pickles and PyTorch's zip files from disk: what they are, and what may be asked of them.

Sizes, offsets and strides are checked against the bytes that are really there, so a file cannot ask for more memory
than it brings (up to small constants). torch.save's zip layout (torch/serialization.py): `{root}/data.pkl`,
`{root}/byteorder`, and one stored, uncompressed member `{root}/data/{key}` for each storage.
"""

import errno
import mmap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from echotts.pickles.machine import Machine
from echotts.pickles.opcodes import run
from echotts.pickles.values import RestrictedPickleError, Unresolved, is_count, is_shape, plain_names, shown

_LARGEST_EXPANDED = 1 << 24
_MALFORMED = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,  # RecursionError among them
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_pickle(path: str | Path) -> Any:
    """The pickle at `path` as dict, list, tuple, set, str, bytes, numbers, None and numpy arrays (ml_dtypes included).

    Named tuples of optax and flax become tuples; flax's boxes around parameters are opened. Arrays are read-only views
    of the file, which is mapped, not read: copy what must outlive it. Raises RestrictedPickleError (a ValueError) for
    a file that is malformed or asks for anything else, FileNotFoundError and OSError as open() does.
    """
    with Path(path).open("rb") as file:
        data = _mapped(file, path)
    if _is_zip(path):
        raise RestrictedPickleError(f"{path}: a zip file, not a pickle: give a .pkl, or read a torch file as .pth")
    return _guarded(path, "a pickle", lambda: run(Machine(data, path, plain_names(), records=("optax.", "flax."))))


def read_torch_zip(path: str | Path) -> Any:
    """What torch.save wrote at `path`, tensors as read-only numpy arrays (bfloat16 and float8 by ml_dtypes).

    Ordered dicts become dicts, parameters become arrays, dtypes and devices their names. Raises RestrictedPickleError
    (a ValueError) for a file that is malformed, in the format before PyTorch 1.6, a TorchScript archive, or that asks
    for anything but tensors and plain containers; FileNotFoundError and OSError as open() does.
    """
    with Path(path).open("rb") as file:
        head = file.read(512)
    if not _is_zip(path):
        if head.startswith(_LEGACY_TORCH) or head[257:262] == b"ustar":
            raise RestrictedPickleError(f"{path}: written before PyTorch 1.6: torch.load it and torch.save it again")
        raise RestrictedPickleError(f"{path}: not a PyTorch zip file, or cut off: fetch it again")
    return _guarded(path, "a PyTorch file", lambda: _read_archive(path))


def _is_zip(path: str | Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def _guarded(path: str | Path, kind: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RestrictedPickleError:
        raise
    except (*_MALFORMED, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: zipfile seeks to a corrupt offset
            raise
        reason = shown(str(error) or type(error).__name__)
        raise RestrictedPickleError(f"{path}: damaged, or not {kind} ({reason}): fetch it again") from error


def _mapped(file: Any, path: str | Path) -> memoryview:
    try:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as error:
        raise RestrictedPickleError(f"{path}: empty") from error


def _read_archive(path: str | Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = _members(archive, path)
        roots = [
            name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(roots) != 1:
            raise RestrictedPickleError(f"{path}: a zip file, but not one that torch.save wrote: it has no data.pkl")
        root = roots[0]
        if f"{root}constants.pkl" in members:
            raise RestrictedPickleError(f"{path}: a TorchScript archive, which holds code: torch.save the state_dict")
        byteorder = archive.read(f"{root}byteorder") if f"{root}byteorder" in members else b"little"
        if byteorder not in (b"little", b"big"):
            raise RestrictedPickleError(f"{path}: unknown byte order {shown(str(byteorder))}")
        storages = _Storages(archive, root, members, "<" if byteorder == b"little" else ">")
        data = memoryview(archive.read(f"{root}data.pkl"))
        return run(Machine(data, path, plain_names() | _TORCH, persistent=storages.load))


def _members(archive: zipfile.ZipFile, path: str | Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's members by name: stored as they are, each name once, no more bytes than the file has."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = shown(info.filename)
        if info.filename in members:
            raise RestrictedPickleError(f"{path}: {name} is there twice")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise RestrictedPickleError(f"{path}: {name} is compressed or encrypted: torch.save stores members plainly")
        members[info.filename] = info
    if sum(info.file_size for info in members.values()) > Path(path).stat().st_size:
        raise RestrictedPickleError(f"{path}: its members overlap")
    return members


class _Storages:
    """The flat arrays behind tensors, read from the archive once each."""

    def __init__(self, archive: zipfile.ZipFile, root: str, members: dict[str, zipfile.ZipInfo], order: str) -> None:
        self._archive, self._root, self._members, self._order = archive, root, members, order
        self._bytes: dict[str, bytes] = {}

    def load(self, identity: Any) -> "_Storage":
        """The storage that the persistent id ("storage", type, key, device, elements) names."""
        if not (isinstance(identity, tuple) and len(identity) == 5 and identity[0] == "storage"):
            raise ValueError("a persistent id that is no storage")
        _, kind, key, _, elements = identity
        dtype = kind.value if isinstance(kind, Unresolved) else None
        if not isinstance(dtype, _StorageType) or not isinstance(key, str) or not is_count(elements):
            raise ValueError("a malformed storage")
        member = f"{self._root}data/{key}"
        if member not in self._members:
            raise ValueError(f"storage {key} is missing")
        if key not in self._bytes:
            self._bytes[key] = self._archive.read(member)
        raw = self._bytes[key]
        if elements * dtype.itemsize != len(raw):
            raise ValueError(
                f"storage {key} says {elements} elements of {dtype.itemsize} bytes and has {len(raw)} bytes"
            )
        return _Storage(raw, dtype.dtype, self._order)


class _StorageType:
    """What a name such as torch.FloatStorage stands for; dtype None is bytes whose type the tensor tells."""

    def __init__(self, dtype: np.dtype | None) -> None:
        self.dtype = dtype
        self.itemsize = 1 if dtype is None else dtype.itemsize


class _Storage:
    def __init__(self, raw: bytes, dtype: np.dtype | None, order: str) -> None:
        self.raw, self.dtype, self.order = raw, dtype, order

    def array(self, dtype: np.dtype) -> np.ndarray:
        if dtype == np.bool_:
            return np.frombuffer(self.raw, np.uint8) != 0
        flat = np.frombuffer(self.raw, dtype)
        # ml_dtypes has no swapped dtypes: the bytes are swapped instead
        return flat if self.order == "<" or dtype.itemsize == 1 else flat.byteswap()


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: np.dtype | None = None
) -> np.ndarray:
    """A tensor as torch._utils._rebuild_tensor_v2 builds it: a strided view that must lie inside its storage."""
    if not isinstance(storage, _Storage) or len(rest) > 3:
        raise ValueError("a tensor without a storage")
    known = dtype or storage.dtype
    if known is None:
        raise ValueError("a tensor without a dtype")
    if not (is_count(offset) and is_shape(shape) and is_shape(strides) and len(shape) == len(strides)):
        raise ValueError("a tensor of impossible shape, strides or offset")
    flat = storage.array(known)
    elements = 1
    for length in shape:
        elements *= length
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if elements and last >= flat.size:
        raise ValueError(f"a tensor of shape {shape} reaches past its storage of {flat.size} elements")
    if elements > max(flat.size, _LARGEST_EXPANDED):
        raise ValueError(f"a tensor of shape {shape} expanded from {flat.size} elements")
    if not elements:
        array = np.zeros(shape, known)
    else:
        steps = tuple(stride * known.itemsize for stride in strides)
        array = np.ndarray(shape, known, flat.view(np.uint8), offset * known.itemsize, steps)
        array.flags.writeable = False
    return _with_metadata(array, rest[2] if len(rest) == 3 else None)


def _with_metadata(array: np.ndarray, metadata: Any) -> np.ndarray:
    """Applies the lazy conjugate and negative bits of a tensor."""
    if metadata is None:
        return array
    if not isinstance(metadata, dict) or set(metadata) - {"conj", "neg"}:
        raise ValueError("a tensor with unknown metadata")
    array = np.conj(array) if metadata.get("conj") else array
    return np.negative(array) if metadata.get("neg") else array


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> np.ndarray:
    """torch._utils._rebuild_tensor_v3: untyped storage; rest is requires_grad, hooks, dtype, metadata."""
    dtype = rest[2].value if len(rest) > 2 and isinstance(rest[2], Unresolved) else None
    if not isinstance(dtype, np.dtype) or len(rest) > 4:
        raise ValueError("a tensor whose dtype is not known")
    return _tensor(storage, offset, shape, strides, *rest[:2], *rest[3:], dtype=dtype)


def _parameter(data: Any, *_: Any) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise ValueError("a parameter without a tensor")
    return data


def _device(*parts: Any) -> str:
    return ":".join(str(part) for part in parts if isinstance(part, (str, int)))


def _torch_names() -> dict[str, Any]:
    special = {"bfloat16": "bfloat16", "float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2"}
    special |= {"float8_e4m3fnuz": "float8_e4m3fnuz", "float8_e5m2fnuz": "float8_e5m2fnuz"}
    dtypes = {name: np.dtype(getattr(ml_dtypes, kind)) for name, kind in special.items()}
    plain = "bool uint8 int8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64 complex64 complex128"
    dtypes |= {name: np.dtype(name) for name in plain.split()}
    storages = {
        "Float": "float32",
        "Double": "float64",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
        "ComplexFloat": "complex64",
        "ComplexDouble": "complex128",
    }
    return {
        "torch.storage.UntypedStorage": _StorageType(None),
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _typed_tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch.device": _device,
        "torch.Size": tuple,
        **{f"torch.{name}Storage": _StorageType(dtypes[dtype]) for name, dtype in storages.items()},
        **{f"torch.{name}": dtype for name, dtype in dtypes.items()},
    }


_TORCH = _torch_names()
