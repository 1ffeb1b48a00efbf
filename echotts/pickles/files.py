"""Pickle files from disk: mapped, run by the machine, and what can go wrong said in one line."""

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

SPARE_BYTES = 24 << 20  # what a file may ask for beyond a multiple of its size, twice (objects, and the plain result)

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
    struct.error,
    tokenize.TokenError,  # NumPy's reader of headers
    SyntaxError,
    zipfile.BadZipFile,
)


def read_pickle(path: str | Path) -> Any:
    """The pickle at `path` as dict, list, tuple, str, bytes, numbers, None and numpy arrays (ml_dtypes included).

    Named tuples of optax and flax become tuples; flax's boxes around parameters are opened. Arrays are read-only views
    of the file, which is mapped, not read: copy what must outlive it. Raises RestrictedPickleError (a ValueError) for
    a file that is malformed, of protocol 0 or 1, or asks for anything else; FileNotFoundError and OSError as open().
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
    """The one object in a .npy file, as numpy.save writes a dict: what `read_pickle` gives of its pickle.

    Raises RestrictedPickleError (a ValueError) for a file that is malformed, holds an array or asks for anything that
    is neither array nor plain container; FileNotFoundError and OSError as open().
    """
    with Path(path).open("rb") as file:
        data = _mapped(file, path)

        def read() -> Any:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            if not dtype.hasobject or shape != ():
                raise ValueError("it holds an array, not one object")
            return run(data[file.tell() :], len(data), object_names())

        return guarded(path, "a NumPy file of one object", read)


def run(data: memoryview, file_bytes: int, names: dict[str, Any], **options: Any) -> Any:
    """The plain value of a pickle, at a cost in proportion to the file it is in. Options as `Machine` takes them."""
    objects = file_bytes * 3 // 2 + SPARE_BYTES
    value = Machine(data, names, objects, **options).run()
    return Unfolding(objects, 2 * file_bytes + SPARE_BYTES).unfold(value).value


def guarded(path: str | Path, kind: str, read: Callable[[], Any]) -> Any:
    """What `read` gives; every way in which a damaged file can make it fail as RestrictedPickleError."""
    try:
        return read()
    except RestrictedPickleError as error:
        raise RestrictedPickleError(f"{path}: {error}") from error
    except (*_MALFORMED, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: zipfile seeks to a corrupt offset
            raise
        reason = shown(str(error) or type(error).__name__)
        raise RestrictedPickleError(f"{path}: damaged, or not {kind} ({reason}): fetch it again") from error


def _mapped(file: Any, path: str | Path) -> memoryview:
    try:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as error:
        raise RestrictedPickleError(f"{path}: is empty (0 bytes): fetch it again") from error
