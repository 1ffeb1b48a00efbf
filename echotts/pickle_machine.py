"""A pickle machine that builds plain containers and arrays, and can call nothing else (see pickles.py)."""

import codecs
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_LONGEST_LINE = 1 << 16
_LONGEST_COPY = 1 << 12  # longer byte strings stay views of the file


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


class _Record:
    """An instance of a class that is not imported: its arguments and state are all that is kept."""

    def __init__(self, name: str, arguments: tuple) -> None:
        self.name, self.arguments, self.state = name, arguments, None


class _DType:
    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


class _Array:
    """An array between numpy's _reconstruct and the state that follows it."""

    value: np.ndarray | None = None


_MARK = object()


class Machine:
    """Runs one pickle.

    Args:
        names: what may be named, as "module.name", and the function or marker that stands for it.
        records: module prefixes whose classes may be named; instances become tuples (arguments) or dicts (state).
        persistent: turns a persistent id into a value.
    """

    def __init__(
        self,
        data: memoryview,
        path: str | Path,
        names: dict[str, Any],
        records: tuple[str, ...] = (),
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self._data, self._path, self._names, self._records, self._persistent = data, path, names, records, persistent
        self._position = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value of the pickle. Raises RestrictedPickleError, or an ordinary error when the file is malformed."""
        while True:
            code = self._take(1)[0]
            if code == _STOP:
                return _plain(self._pop(), {})
            handler = _HANDLERS.get(code)
            if handler is None:
                raise ValueError(f"opcode 0x{code:02x}")
            handler(self)

    def _take(self, count: int) -> memoryview:
        end = self._position + count
        if count < 0 or end > len(self._data):
            raise EOFError("cut off")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def _line(self) -> bytes:
        window = bytes(self._data[self._position : self._position + _LONGEST_LINE])
        line, newline, _ = window.partition(b"\n")
        if not newline:
            raise EOFError("a line without an end")
        self._position += len(line) + 1
        return line

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value must be")
        return value

    def _top(self, kind: type | tuple[type, ...]) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise ValueError(f"a {type(self._stack[-1]).__name__} is used as a container")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        stack = self._stack
        index = len(stack) - 1
        while stack[index] is not _MARK:
            index -= 1
            if index < 0:
                raise ValueError("no mark")
        items = stack[index + 1 :]
        del stack[index:]
        return items

    def _set_items(self, items: list[Any]) -> None:
        target = self._top((dict, _Record))
        if isinstance(target, _Record) or len(items) % 2:
            raise ValueError("items for something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _find(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        module = {"__builtin__": "builtins"}.get(module, module)
        full = f"{module}.{name}"
        if full in self._names:
            self._push(Unresolved(full, self._names[full]))
        elif full.startswith(self._records) and name.lstrip("_")[:1].isupper():
            self._push(Unresolved(full, lambda *arguments: _Record(full, arguments)))
        else:
            raise RestrictedPickleError(
                f"{self._path}: refused: it asks for {shown(full)}, which is neither array, tensor nor plain container"
            )

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Unresolved) or not callable(function.value):
            raise ValueError("a call of something that is no function")
        if not isinstance(arguments, tuple):
            raise ValueError(f"a call of {function.name} without arguments")
        self._push(function.value(*arguments))

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        if isinstance(target, _Array):
            target.value = _array_from_state(state)
        elif isinstance(target, _DType):
            target.dtype = _dtype_from_state(target.dtype, state)
        elif isinstance(target, _Record):
            target.state = state
        elif not isinstance(target, dict):  # attributes of an OrderedDict (state_dict's _metadata) are dropped
            raise ValueError(f"state for a {type(target).__name__}")


def _key(key: Any) -> Any:
    """Only scalars and flat tuples of them: hashing anything nested could take for ever."""
    parts = key if isinstance(key, tuple) else (key,)
    if not all(part is None or isinstance(part, (str, bytes, int, float)) for part in parts):
        raise ValueError(f"a {type(key).__name__} as a key")
    return key


def _dtype(kind: Any, *_: Any) -> _DType:
    if isinstance(kind, Unresolved) and isinstance(kind.value, np.dtype):
        return _DType(kind.value)
    if not isinstance(kind, str) or not re.fullmatch(r"[<>|=]?([biufc]\d{1,2}|[SU]\d{1,4}|\?)", kind):
        raise ValueError(f"an array of dtype {shown(kind) if isinstance(kind, str) else 'unknown'}")
    return _DType(np.dtype(kind))


def _dtype_from_state(dtype: np.dtype, state: Any) -> np.dtype:
    """Applies the byte order of numpy's dtype state (version, order, subdtype, names, fields, size, ...)."""
    if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
        raise ValueError("a structured dtype")
    if not isinstance(state[1], str) or state[1] not in "<>|=":
        raise ValueError("a dtype without a byte order")
    return dtype.newbyteorder(state[1]) if state[1] == ">" else dtype


def _array_from_state(state: Any) -> np.ndarray:
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("an array without a state")
    _, shape, dtype, fortran, raw = state
    return _array_from_buffer(raw, dtype, shape, "F" if fortran is True else "C")


def _array_from_buffer(raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    if not isinstance(dtype, _DType) or not isinstance(raw, (bytes, memoryview)):
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
    return {_key(key): value for key, value in items}


def _default_dict(factory: Any = None, items: Any = ()) -> dict[Any, Any]:
    return _pairs(items)


def _members(items: Any = ()) -> set[Any]:
    if not isinstance(items, (list, tuple)):
        raise ValueError("a set of no list")
    return {_key(item) for item in items}


def _bytes(raw: Any = b"") -> bytes:
    if not isinstance(raw, (bytes, memoryview)):
        raise ValueError("bytes of something else")
    return bytes(raw)


def _byte_array(text: Any = b"", encoding: Any = "latin1") -> bytes:
    return _encode(text, encoding) if isinstance(text, str) else _bytes(text)


def plain_names() -> dict[str, Any]:
    """The names that every pickle may use: containers of the standard library, arrays and dtypes."""
    numpy_names = {
        "multiarray._reconstruct": lambda *_: _Array(),
        "multiarray.scalar": _scalar,
        "numeric._frombuffer": _array_from_buffer,
    }
    kinds = ["bfloat16"]
    kinds += [f"float8_{kind}" for kind in ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")]
    return {
        "builtins.set": _members,
        "builtins.frozenset": lambda *items: frozenset(_members(*items)),
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


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """The value with every stand-in replaced. What is shared stays shared; what contains itself is refused."""
    if isinstance(value, (str, bytes, int, float, complex, np.ndarray, np.generic)) or value is None:
        return value
    if id(value) in done:
        if done[id(value)] is _MARK:
            raise ValueError("a container that contains itself")
        return done[id(value)]
    done[id(value)] = _MARK
    if isinstance(value, dict):
        result: Any = {key: _plain(item, done) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        result = type(value)(_plain(item, done) for item in value)
    elif isinstance(value, (set, frozenset)):
        result = value
    elif isinstance(value, memoryview):
        result = bytes(value)
    elif isinstance(value, _Array):
        result = value.value
    elif isinstance(value, _DType):
        result = str(value.dtype)
    elif isinstance(value, Unresolved):
        result = value.name
    elif isinstance(value, _Record):
        result = _plain_record(value, done)
    else:
        raise ValueError(f"a {type(value).__name__.strip('_')} outside of an array")
    if result is None:
        raise ValueError("an array without a value")
    done[id(value)] = result
    return result


def _plain_record(record: _Record, done: dict[int, Any]) -> Any:
    """A named tuple as a tuple, an object's attributes as a dict, a flax box or frozen dict as what it holds."""
    last = record.name.rpartition(".")[2]
    if last == "FrozenDict" and len(record.arguments) == 1:
        return _plain(record.arguments[0], done)
    if record.state is None:
        return _plain(record.arguments, done)
    state = _plain(record.state, done)
    boxed = isinstance(state, dict) and last in ("Partitioned", "LogicallyPartitioned") and "value" in state
    return state["value"] if boxed else state


# The opcodes, by name as in pickletools. Each handler does what the pickle documentation says, on plain values only.


def _op_mark(m: Machine) -> None:
    m._push(_MARK)


def _op_pop(m: Machine) -> None:
    m._stack.pop()


def _op_pop_mark(m: Machine) -> None:
    m._pop_to_mark()


def _op_dup(m: Machine) -> None:
    m._push(m._stack[-1])


def _op_int_line(m: Machine) -> None:
    line = m._line()
    m._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line))


def _op_long_line(m: Machine) -> None:
    m._push(int(m._line().rstrip(b"L")))


def _op_float_line(m: Machine) -> None:
    m._push(float(m._line()))


def _op_string_line(m: Machine) -> None:
    line = m._line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("a string without quotes")
    m._push(codecs.escape_decode(line[1:-1])[0].decode("latin1"))  # pyright: ignore[reportAttributeAccessIssue]


def _op_unicode_line(m: Machine) -> None:
    m._push(m._line().decode("raw-unicode-escape"))


def _integer(layout: str) -> Callable[[Machine], None]:
    return lambda m: m._push(m._number(layout))


def _op_long(layout: str) -> Callable[[Machine], None]:
    def handler(m: Machine) -> None:
        count = m._number(layout)
        if count > 1024:
            raise ValueError("an absurdly long number")
        m._push(int.from_bytes(m._take(count), "little", signed=True))

    return handler


def _text(layout: str, encoding: str = "utf-8", errors: str = "surrogatepass") -> Callable[[Machine], None]:
    return lambda m: m._push(str(m._take(m._number(layout)), encoding, errors))


def _octets(layout: str) -> Callable[[Machine], None]:
    def handler(m: Machine) -> None:
        piece = m._take(m._number(layout))
        m._push(bytes(piece) if len(piece) <= _LONGEST_COPY else piece)

    return handler


def _constant(value: Any) -> Callable[[Machine], None]:
    return lambda m: m._push(value)


def _op_tuple_of(count: int) -> Callable[[Machine], None]:
    def handler(m: Machine) -> None:
        m._push(tuple([m._pop() for _ in range(count)][::-1]))

    return handler


def _op_dict(m: Machine) -> None:
    items = m._pop_to_mark()
    m._push({})
    m._set_items(items)


def _op_append(m: Machine) -> None:
    item = m._pop()
    m._top(list).append(item)


def _op_appends(m: Machine) -> None:
    items = m._pop_to_mark()
    m._top(list).extend(items)


def _op_set_item(m: Machine) -> None:
    value, key = m._pop(), m._pop()
    m._set_items([key, value])


def _op_add_items(m: Machine) -> None:
    items = m._pop_to_mark()
    m._top(set).update(_key(item) for item in items)


def _op_global(m: Machine) -> None:
    module, name = m._line().decode(), m._line().decode()
    m._find(module, name)


def _op_stack_global(m: Machine) -> None:
    name, module = m._pop(), m._pop()
    m._find(module, name)


def _op_inst(m: Machine) -> None:
    _op_global(m)
    function = m._pop()
    m._call(function, tuple(m._pop_to_mark()))


def _op_obj(m: Machine) -> None:
    function, *arguments = m._pop_to_mark()
    m._call(function, tuple(arguments))


def _op_reduce(m: Machine) -> None:
    arguments, function = m._pop(), m._pop()
    m._call(function, arguments)


def _op_new_keywords(m: Machine) -> None:
    keywords, arguments, function = m._pop(), m._pop(), m._pop()
    if keywords:
        raise ValueError("a call with keywords")
    m._call(function, arguments)


def _op_build(m: Machine) -> None:
    m._build(m._pop())


def _put(read: Callable[[Machine], int]) -> Callable[[Machine], None]:
    def handler(m: Machine) -> None:
        m._memo[read(m)] = m._stack[-1]

    return handler


def _get(read: Callable[[Machine], int]) -> Callable[[Machine], None]:
    return lambda m: m._push(m._memo[read(m)])


def _op_memoize(m: Machine) -> None:
    m._memo[len(m._memo)] = m._stack[-1]


def _op_persistent(m: Machine) -> None:
    if m._persistent is None:
        raise ValueError("a persistent id: is it a torch file?")
    m._push(m._persistent(m._pop()))


def _skip(count: int) -> Callable[[Machine], None]:
    def handler(m: Machine) -> None:
        m._take(count)

    return handler


_STOP = ord(".")
_HANDLERS: dict[int, Callable[[Machine], None]] = {
    ord(code): handler
    for code, handler in {
        "(": _op_mark,
        "0": _op_pop,
        "1": _op_pop_mark,
        "2": _op_dup,
        "I": _op_int_line,
        "J": _integer("<i"),
        "K": _integer("<B"),
        "M": _integer("<H"),
        "G": _integer(">d"),
        "L": _op_long_line,
        "\x8a": _op_long("<B"),
        "\x8b": _op_long("<i"),
        "F": _op_float_line,
        "S": _op_string_line,
        "T": _text("<i", "latin1", "strict"),
        "U": _text("<B", "latin1", "strict"),
        "V": _op_unicode_line,
        "X": _text("<I"),
        "\x8c": _text("<B"),
        "\x8d": _text("<Q"),
        "B": _octets("<I"),
        "C": _octets("<B"),
        "\x8e": _octets("<Q"),
        "\x96": _octets("<Q"),
        "N": _constant(None),
        "\x88": _constant(True),
        "\x89": _constant(False),
        ")": _constant(()),
        "]": lambda m: m._push([]),
        "}": lambda m: m._push({}),
        "\x8f": lambda m: m._push(set()),
        "t": lambda m: m._push(tuple(m._pop_to_mark())),
        "\x85": _op_tuple_of(1),
        "\x86": _op_tuple_of(2),
        "\x87": _op_tuple_of(3),
        "l": lambda m: m._push(m._pop_to_mark()),
        "d": _op_dict,
        "a": _op_append,
        "e": _op_appends,
        "s": _op_set_item,
        "u": lambda m: m._set_items(m._pop_to_mark()),
        "\x90": _op_add_items,
        "\x91": lambda m: m._push(frozenset(_members(m._pop_to_mark()))),
        "c": _op_global,
        "\x93": _op_stack_global,
        "i": _op_inst,
        "o": _op_obj,
        "R": _op_reduce,
        "\x81": _op_reduce,
        "\x92": _op_new_keywords,
        "b": _op_build,
        "p": _put(lambda m: int(m._line())),
        "q": _put(lambda m: m._number("<B")),
        "r": _put(lambda m: m._number("<I")),
        "\x94": _op_memoize,
        "g": _get(lambda m: int(m._line())),
        "h": _get(lambda m: m._number("<B")),
        "j": _get(lambda m: m._number("<I")),
        "Q": _op_persistent,
        "\x80": _skip(1),
        "\x95": _skip(8),
        "\x98": lambda m: None,
    }.items()
}
