"""Values and names that a pickle may contain: stand-ins for classes, and the arrays and containers they become."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

MOST_INTEGER_KEY = 1 << 16
DEEPEST = 64  # nested containers


class RestrictedPickleError(ValueError):
    """The file is malformed, or references something that is neither an array nor a plain container."""


Spend = Callable[[int], None]  # charges the bytes that a function allocates (Machine.spend)


def shown(text: str) -> str:
    """Text from a file, shortened to one line without control characters."""
    escaped = text[:200].encode("unicode_escape").decode()
    return escaped if len(escaped) <= 120 else escaped[:117] + "..."


def is_shape(numbers: Any) -> bool:
    """Whether it is a tuple of at most 32 sizes."""
    return isinstance(numbers, tuple) and len(numbers) <= 32 and all(is_count(number) for number in numbers)


def is_count(number: Any) -> bool:
    """Whether it is an integer from 0 to 2**60."""
    return type(number) is int and 0 <= number <= 1 << 60


def checked_key(key: Any) -> Any:
    """Allows strings, None and small integers as keys. Hashes of larger integers and tuples are predictable, so a file
    could contain many colliding keys, each of which would be compared with all before it."""
    if key is None or isinstance(key, str) or (isinstance(key, int) and 0 <= key < MOST_INTEGER_KEY):
        return key
    raise ValueError(f"a {type(key).__name__} as a key, or an integer above {MOST_INTEGER_KEY}")


class Record:
    """A class that is not imported, or (once called) an instance, reduced to its arguments and state."""

    def __init__(self, name: str, arguments: tuple = ()) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __call__(self, _: Spend, *arguments: Any) -> "Record":
        return Record(self.name, arguments)


class DType:
    """A dtype that may still get a byte order."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


class Array:
    """An array between numpy's _reconstruct and its state."""

    value: Any = None


def _dtype(_: Spend, kind: Any, *__: Any) -> DType:
    if isinstance(kind, np.dtype):
        return DType(kind)
    if not isinstance(kind, str) or not re.fullmatch(r"[<>|=]?([biufc]\d{1,2}|\?)", kind):
        raise ValueError(f"an array of dtype {shown(kind) if isinstance(kind, str) else 'unknown'}")
    return DType(np.dtype(kind))


def dtype_from_state(dtype: np.dtype, state: Any) -> np.dtype:
    """Applies the byte order of numpy's dtype state (version, order, subdtype, names, fields, size, ...)."""
    if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
        raise ValueError("a structured dtype")
    if not isinstance(state[1], str) or state[1] not in ("<", ">", "|", "="):
        raise ValueError("a dtype without a byte order")
    return dtype.newbyteorder(">") if state[1] == ">" else dtype


def array_from_state(spend: Spend, state: Any) -> Any:
    """The array of numpy's state (version, shape, dtype, Fortran order, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("an array without a state")
    _, shape, dtype, fortran, raw = state
    if isinstance(dtype, DType) and dtype.dtype.hasobject and shape == () and type(raw) is list and len(raw) == 1:
        return raw[0]  # one object in a zero-dimensional array: only `object_names` permits that dtype
    return _array(spend, raw, dtype, shape, "F" if fortran is True else "C")


def _array(spend: Spend, raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    if not isinstance(dtype, DType) or not isinstance(raw, (bytes, memoryview)):
        raise ValueError("an array of objects")
    if not is_shape(shape):
        raise ValueError("an array of impossible shape")
    if order == "K" and is_shape(axes) and sorted(axes) == [*range(len(shape))]:
        return _array(spend, raw, dtype, shape, "C").transpose(axes)
    if order not in ("C", "F") or axes is not None:
        raise ValueError("an array in an unknown order")
    elements = product(shape)
    if elements * dtype.dtype.itemsize != len(raw):
        raise ValueError(f"an array of shape {shown(str(shape))} and {len(raw)} bytes")
    if not elements:
        return np.zeros(shape, dtype.dtype)
    if dtype.dtype == np.bool_:
        spend(elements)
        return (np.frombuffer(raw, np.uint8) != 0).reshape(shape, order=order)
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


def product(shape: tuple[int, ...]) -> int:
    """The number of elements of a shape, without overflow."""
    elements = 1
    for length in shape:
        elements *= length
    return elements


def _scalar(spend: Spend, dtype: Any, raw: Any) -> Any:
    return _array(spend, raw, dtype, (1,), "C")[0]


def _encode(spend: Spend, text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes in an unknown encoding")
    spend(len(text))
    return text.encode("latin1")


def _dict(spend: Spend, items: Any = ()) -> dict[Any, Any]:
    """OrderedDict; only protocols below 2 pass items to the call."""
    if items:
        raise ValueError("a dict made of something else")
    return {}


def _default_dict(spend: Spend, factory: Any = None) -> dict[Any, Any]:
    return {}


def _empty_bytes(_: Spend) -> bytes:
    return b""


def plain_names() -> dict[str, Any]:
    """The names that every pickle may use: containers of the standard library, arrays and dtypes."""
    numpy_names: dict[str, Callable[..., Any]] = {
        "multiarray._reconstruct": lambda *_: Array(),
        "multiarray.scalar": _scalar,
        "numeric._frombuffer": _array,
    }
    kinds = ["bfloat16"]
    kinds += [f"float8_{kind}" for kind in ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")]
    return {
        "collections.OrderedDict": _dict,
        "collections.defaultdict": _default_dict,
        **{f"builtins.{name}": None for name in ("list", "dict", "int", "float", "str", "tuple")},  # default factories
        "builtins.bytes": _empty_bytes,
        "_codecs.encode": _encode,
        "numpy.ndarray": None,
        "numpy.dtype": _dtype,
        **{f"numpy.{package}.{name}": value for package in ("core", "_core") for name, value in numpy_names.items()},
        **{f"ml_dtypes.{kind}": np.dtype(getattr(ml_dtypes, kind)) for kind in kinds},
    }


def object_names() -> dict[str, Any]:
    """`plain_names`, and zero-dimensional arrays with one plain value, as numpy.save stores a dict."""

    def dtype(spend: Spend, kind: Any, *rest: Any) -> DType:
        return DType(np.dtype(object)) if kind == "O8" else _dtype(spend, kind, *rest)

    return plain_names() | {"numpy.dtype": dtype}


@dataclass(slots=True)
class Unfolded:
    """A plain value and the cost of walking it, counting everything as often as it is referenced."""

    value: Any
    objects: int = 0  # bytes of containers, numbers, strings and paths to the leaves
    array_bytes: int = 0
    leaves: int = 0
    height: int = 0  # depth of nested containers

    def add(self, part: "Unfolded", path: int) -> None:
        """Adds the cost of `part`, which is inside under a key of `path` characters."""
        self.objects += part.objects + path * part.leaves
        self.array_bytes += part.array_bytes
        self.leaves += part.leaves
        self.height = max(self.height, 1 + part.height)


class Unfolding:
    """Replaces every stand-in of a value. Shared values stay shared, but count each time they are referenced.

    Raises RestrictedPickleError if walking or copying the result would cost more than `objects` bytes of containers
    and paths ("a/b/c" to each leaf) or `array_bytes` of arrays, ValueError if it is nested too deep or in itself.
    """

    def __init__(self, objects: int, array_bytes: int) -> None:
        self._objects, self._array_bytes = objects, array_bytes
        self._done: dict[int, Unfolded | None] = {}  # by id of the original; None: in progress

    def unfold(self, value: Any) -> Unfolded:
        """The value as dicts, lists, tuples, arrays, numbers and strings."""
        if id(value) in self._done:
            done = self._done[id(value)]
            if done is None:
                raise ValueError("a container that contains itself")
            return done
        self._done[id(value)] = None
        made = self._unfold(value)
        if made.objects > self._objects or made.array_bytes > self._array_bytes:
            raise RestrictedPickleError(
                "references the same arrays or containers so often that they unfold to far more"
            )
        if made.height > DEEPEST:
            raise ValueError(f"containers nested more than {DEEPEST} deep")
        self._done[id(value)] = made
        return made

    def _unfold(self, value: Any) -> Unfolded:
        if isinstance(value, np.ndarray):
            return Unfolded(value, 8, value.size * value.dtype.itemsize, 1)
        if isinstance(value, memoryview):
            return Unfolded(bytes(value), len(value), 0, 1)
        if isinstance(value, (DType, np.dtype)):
            return Unfolded(str(value.dtype if isinstance(value, DType) else value), 8, 0, 1)
        if isinstance(value, Record):
            return self.unfold(_opened(value))
        if isinstance(value, Array) and value.value is not None:
            return self.unfold(value.value)
        if isinstance(value, dict):
            made = Unfolded({}, 72)
            for key, item in value.items():
                made.value[key] = self._inside(made, item, len(str(key)) + 1)
            return made
        made = Unfolded(None, 72)
        if isinstance(value, (list, tuple)):
            made.value = type(value)([self._inside(made, item, 0) for item in value])
        elif _is_scalar(value):
            self._inside(made, value, 0)
            made.value = value
        else:
            raise ValueError(f"a {type(value).__name__.strip('_')} outside of an array")
        return made

    def _inside(self, made: Unfolded, item: Any, path: int) -> Any:
        """The plain item of a container; scalars are handled here, as they are too many for an `Unfolded` each."""
        if _is_scalar(item):
            made.objects += 8 + path + (len(item) if isinstance(item, (str, bytes)) else 0)
            made.leaves += 1
            return item
        part = self.unfold(item)
        made.add(part, path)
        return part.value


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (str, bytes, int, float, np.generic))


def _opened(record: Record) -> Any:
    """A named tuple as a tuple, an object's attributes as a dict, a flax box or frozen dict as its content."""
    last = record.name.rpartition(".")[2]
    if last == "FrozenDict" and len(record.arguments) == 1:
        return record.arguments[0]
    if record.state is None:
        return record.arguments
    boxed = type(record.state) is dict and last in ("Partitioned", "LogicallyPartitioned") and "value" in record.state
    return record.state["value"] if boxed else record.state
