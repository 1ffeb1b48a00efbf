"""What a pickle may hold and name: stand-ins for what is not imported, and the arrays and containers they become."""

import re
from typing import Any

import ml_dtypes
import numpy as np

_UNDER_WAY = object()


class RestrictedPickleError(ValueError):
    """The file is malformed, or asks for something that is neither an array nor a plain container."""


def shown(text: str) -> str:
    """Text from a file as one short line, without control characters."""
    escaped = text.encode("unicode_escape").decode()
    return escaped if len(escaped) <= 120 else escaped[:117] + "..."


def is_shape(numbers: Any) -> bool:
    """Whether it is a tuple of at most 32 sizes."""
    return isinstance(numbers, tuple) and len(numbers) <= 32 and all(is_count(number) for number in numbers)


def is_count(number: Any) -> bool:
    """Whether it is an integer from 0 to 2**60."""
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= 1 << 60


class Unresolved:
    """A permitted name before it is called; `value` is a function, a dtype or another marker of the table."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value


class Record:
    """An instance of a class that is not imported: its arguments and state are all that is kept."""

    def __init__(self, name: str, arguments: tuple) -> None:
        self.name, self.arguments, self.state = name, arguments, None


class DType:
    """A dtype, whose byte order may follow."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


class Array:
    """An array between numpy's _reconstruct and the state that follows it."""

    value: np.ndarray | None = None


def flat_key(key: Any) -> Any:
    """Only scalars and flat tuples of them: hashing anything nested could take for ever."""
    parts = key if isinstance(key, tuple) else (key,)
    if not all(part is None or isinstance(part, (str, bytes, int, float)) for part in parts):
        raise ValueError(f"a {type(key).__name__} as a key")
    return key


def _dtype(kind: Any, *_: Any) -> DType:
    if isinstance(kind, Unresolved) and isinstance(kind.value, np.dtype):
        return DType(kind.value)
    if not isinstance(kind, str) or not re.fullmatch(r"[<>|=]?([biufc]\d{1,2}|[SU]\d{1,4}|\?)", kind):
        raise ValueError(f"an array of dtype {shown(kind) if isinstance(kind, str) else 'unknown'}")
    return DType(np.dtype(kind))


def dtype_from_state(dtype: np.dtype, state: Any) -> np.dtype:
    """Applies the byte order of numpy's dtype state (version, order, subdtype, names, fields, size, ...)."""
    if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
        raise ValueError("a structured dtype")
    if not isinstance(state[1], str) or state[1] not in "<>|=":
        raise ValueError("a dtype without a byte order")
    return dtype.newbyteorder(state[1]) if state[1] == ">" else dtype


def array_from_state(state: Any) -> np.ndarray:
    """The array of numpy's state (version, shape, dtype, Fortran order, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("an array without a state")
    _, shape, dtype, fortran, raw = state
    return _array_from_buffer(raw, dtype, shape, "F" if fortran is True else "C")


def _array_from_buffer(raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    if not isinstance(dtype, DType) or not isinstance(raw, (bytes, memoryview)):
        raise ValueError("an array that holds objects")
    if not is_shape(shape):
        raise ValueError("an array of impossible shape")
    if order == "K" and isinstance(axes, tuple) and sorted(axes) == list(range(len(shape))):
        return _array_from_buffer(raw, dtype, shape, "C").transpose(axes)
    if order not in ("C", "F") or axes is not None:
        raise ValueError("an array in an unknown order")
    elements = 1
    for length in shape:
        elements *= length
    if elements * dtype.dtype.itemsize != len(raw):
        raise ValueError(f"an array of shape {shown(str(shape))} and {len(raw)} bytes")
    if dtype.dtype == np.bool_:
        return (np.frombuffer(raw, np.uint8) != 0).reshape(shape, order=order)
    if not elements:
        return np.zeros(shape, dtype.dtype)
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


def _scalar(dtype: Any, raw: Any) -> Any:
    return _array_from_buffer(raw, dtype, (1,), "C")[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin1")


def _pairs(items: Any = ()) -> dict[Any, Any]:
    if not isinstance(items, (list, tuple)) or not all(isinstance(i, (list, tuple)) and len(i) == 2 for i in items):
        raise ValueError("a dict of no pairs")
    return {flat_key(key): value for key, value in items}


def _default_dict(factory: Any = None, items: Any = ()) -> dict[Any, Any]:
    return _pairs(items)


def members(items: Any = ()) -> set[Any]:
    """A set of scalars and flat tuples."""
    if not isinstance(items, (list, tuple)):
        raise ValueError("a set of no list")
    return {flat_key(item) for item in items}


def _bytes(raw: Any = b"") -> bytes:
    if not isinstance(raw, (bytes, memoryview)):
        raise ValueError("bytes of something else")
    return bytes(raw)


def _byte_array(text: Any = b"", encoding: Any = "latin1") -> bytes:
    return _encode(text, encoding) if isinstance(text, str) else _bytes(text)


def plain_names() -> dict[str, Any]:
    """The names that every pickle may use: containers of the standard library, arrays and dtypes."""
    numpy_names = {
        "multiarray._reconstruct": lambda *_: Array(),
        "multiarray.scalar": _scalar,
        "numeric._frombuffer": _array_from_buffer,
    }
    kinds = ["bfloat16"]
    kinds += [f"float8_{kind}" for kind in ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")]
    return {
        "builtins.set": members,
        "builtins.frozenset": lambda *items: frozenset(members(*items)),
        "builtins.bytes": _bytes,
        "builtins.bytearray": _byte_array,
        "builtins.complex": lambda real, imaginary: complex(float(real), float(imaginary)),
        **{f"builtins.{name}": None for name in ("list", "dict", "int", "float", "str", "tuple")},
        "collections.OrderedDict": _pairs,
        "collections.defaultdict": _default_dict,
        "_codecs.encode": _encode,
        "numpy.ndarray": None,
        "numpy.dtype": _dtype,
        **{f"numpy.{package}.{name}": value for package in ("core", "_core") for name, value in numpy_names.items()},
        **{f"ml_dtypes.{kind}": np.dtype(getattr(ml_dtypes, kind)) for kind in kinds},
    }


def plain(value: Any, done: dict[int, Any]) -> Any:
    """The value with every stand-in replaced. What is shared stays shared; what contains itself is refused.

    `done` holds the containers that are replaced, by their id; it begins empty.
    """
    if isinstance(value, (str, bytes, int, float, complex, np.ndarray, np.generic)) or value is None:
        return value
    if id(value) in done:
        if done[id(value)] is _UNDER_WAY:
            raise ValueError("a container that contains itself")
        return done[id(value)]
    done[id(value)] = _UNDER_WAY
    if isinstance(value, dict):
        result: Any = {key: plain(item, done) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        result = type(value)(plain(item, done) for item in value)
    elif isinstance(value, (set, frozenset)):
        result = value
    elif isinstance(value, memoryview):
        result = bytes(value)
    elif isinstance(value, Array):
        result = value.value
    elif isinstance(value, DType):
        result = str(value.dtype)
    elif isinstance(value, Unresolved):
        result = value.name
    elif isinstance(value, Record):
        result = _plain_record(value, done)
    else:
        raise ValueError(f"a {type(value).__name__.strip('_')} outside of an array")
    if result is None:
        raise ValueError("an array without a value")
    done[id(value)] = result
    return result


def _plain_record(record: Record, done: dict[int, Any]) -> Any:
    """A named tuple as a tuple, an object's attributes as a dict, a flax box or frozen dict as what it holds."""
    last = record.name.rpartition(".")[2]
    if last == "FrozenDict" and len(record.arguments) == 1:
        return plain(record.arguments[0], done)
    if record.state is None:
        return plain(record.arguments, done)
    state = plain(record.state, done)
    boxed = isinstance(state, dict) and last in ("Partitioned", "LogicallyPartitioned") and "value" in state
    return state["value"] if boxed else state
