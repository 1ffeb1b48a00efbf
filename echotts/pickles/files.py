"""Reads pickle files from disk through a memory map, and reports errors in one line."""

import errno
import mmap
import struct
import tokenize
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from echotts.pickles.machine import Machine
from echotts.pickles.values import RestrictedPickleError, Unfolding, object_names, plain_names, shown

SPARE_BYTES = 24 << 20  # allowance beyond a multiple of the file's size, twice (objects, and the plain result)

_MALFORMED = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,  # including RecursionError
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,  # NumPy's reader of headers
    SyntaxError,
    zipfile.BadZipFile,
)


def read_pickle(path: str | Path) -> Any:
    """The pickle at `path` as dict, list, tuple, str, bytes, numbers, None and numpy arrays (ml_dtypes included).

    Named tuples of optax and flax become tuples; flax's boxes around parameters are unwrapped. Arrays are read-only
    views of the memory-mapped file: copy what must outlive it. Raises RestrictedPickleError (a ValueError) for a file
    that is malformed, of protocol 0 or 1, or references anything else; FileNotFoundError and OSError as open().
    """
    with Path(path).open("rb") as file:
        data = _mapped(file, path)
    if data[:2] == b"PK":
        raise RestrictedPickleError(f"{path}: a zip file, not a pickle: give a .pkl, or read a torch file as .pth")
    if data[:1] != b"\x80":
        raise RestrictedPickleError(f"{path}: not a pickle, or of protocol 0 or 1: write it again with protocol 4")
    names = plain_names()
    return guarded(path, "a pickle", lambda: run(data, len(data), names, records=("optax.", "flax.")))


def read_npy_pickle(path: str | Path) -> Any:
    """The single object in a .npy file, such as a dict written by numpy.save, as plain values (see `read_pickle`).

    Raises RestrictedPickleError (a ValueError) for a file that is malformed, contains an array, or references anything
    but arrays and plain containers; FileNotFoundError and OSError as open().
    """
    with Path(path).open("rb") as file:
        data = _mapped(file, path)

        def read() -> Any:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            if not dtype.hasobject or shape != ():
                raise ValueError("it contains an array, not one object")
            return run(data[file.tell() :], len(data), object_names())

        return guarded(path, "a NumPy file of one object", read)


def run(data: memoryview, file_bytes: int, names: dict[str, Any], **options: Any) -> Any:
    """The plain value of a pickle, at a cost proportional to the size of its file. Options as in `Machine`."""
    objects = file_bytes * 3 // 2 + SPARE_BYTES
    value = Machine(data, names, objects, **options).run()
    return Unfolding(objects, 2 * file_bytes + SPARE_BYTES).unfold(value).value


def guarded(path: str | Path, kind: str, read: Callable[[], Any]) -> Any:
    """The result of `read`; all errors that a damaged file can cause become RestrictedPickleError."""
    try:
        return read()
    except RestrictedPickleError as error:
        raise RestrictedPickleError(f"{path}: {error}") from error
    except (*_MALFORMED, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: zipfile seeks to a corrupt offset
            raise
        reason = shown(str(error) or type(error).__name__)
        raise RestrictedPickleError(f"{path}: damaged, or not {kind} ({reason}): download it again") from error


def _mapped(file: Any, path: str | Path) -> memoryview:
    try:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as error:
        raise RestrictedPickleError(f"{path}: is empty (0 bytes): fetch it again") from error
