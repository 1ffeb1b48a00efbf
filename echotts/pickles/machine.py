"""The pickle interpreter: opcodes, stack and memo, for plain values (opcodes as in pickletools, protocols 2 to 5)."""

import struct
import sys
from collections.abc import Callable
from typing import Any

from echotts.pickles.values import (
    Array,
    DType,
    Record,
    RestrictedPickleError,
    array_from_state,
    checked_key,
    dtype_from_state,
    shown,
)

MARK = object()
LONGEST_NAME = 256
LONGEST_TEXT = 1 << 24
LONGEST_COPY = 1 << 12  # longer byte strings stay views of the file
REFERENCE, NUMBER, CONTAINER, DICT_ITEM, VIEW = 8, 40, 72, 112, 200  # cost of objects in bytes, rounded up

_number: dict[str, struct.Struct] = {layout: struct.Struct(layout) for layout in ("<B", "<H", "<I", "<Q", "<i", ">d")}


class Machine:
    """Interprets one pickle. Calls only what `names` permits.

    Args:
        names: permitted names, as "module.name", with the function or marker that represents each.
        allowance: bytes that the created objects may take.
        records: module prefixes whose classes are permitted; instances become tuples (arguments) or dicts (state).
        persistent: resolves a persistent id to a value.
    """

    def __init__(
        self,
        data: memoryview,
        names: dict[str, Any],
        allowance: int,
        records: tuple[str, ...] = (),
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self._data, self._names, self._records, self._persistent = data, names, records, persistent
        self._position, self._allowance = 0, allowance
        self._stack: list[Any] = []
        self._memo: list[Any] = []

    def run(self) -> Any:
        """The value of the pickle, with stand-ins. RestrictedPickleError, or an ordinary exception if malformed."""
        while True:
            code = self._data[self._position]
            self._position += 1
            if code in _CONSTANTS:
                self._push(_CONSTANTS[code], REFERENCE)
            elif code == _STOP:
                return self._pop()
            elif code in _HANDLERS:
                _HANDLERS[code](self)
            else:
                raise ValueError(f"opcode 0x{code:02x}, which no pickle of protocol 2 to 5 needs for arrays")

    def spend(self, cost: int) -> None:
        """Charges `cost` bytes of objects; RestrictedPickleError if the allowance is exceeded."""
        self._allowance -= cost
        if self._allowance < 0:
            raise RestrictedPickleError("asks for far more memory than its size")

    def _push(self, value: Any, cost: int) -> None:
        self.spend(cost)
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is MARK:
            raise ValueError("a mark where a value must be")
        return value

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"a {type(self._stack[-1]).__name__} is used as a {kind.__name__}")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        stack = self._stack
        index = len(stack) - 1
        while stack[index] is not MARK:
            index -= 1
            if index < 0:
                raise ValueError("no mark")
        items = stack[index + 1 :]
        del stack[index:]
        return items

    def _take(self, layout: str) -> Any:
        number = _number[layout]
        value = number.unpack_from(self._data, self._position)[0]
        self._position += number.size
        return value

    def _piece(self, count: int) -> memoryview:
        end = self._position + count
        if end > len(self._data):
            raise EOFError("truncated")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def _skip(self, count: int) -> None:
        self._position += count

    def _line(self) -> str:
        window = bytes(self._data[self._position : self._position + LONGEST_NAME])
        line, newline, _ = window.partition(b"\n")
        if not newline:
            raise ValueError(f"an unterminated name, or one of more than {LONGEST_NAME} bytes")
        self._position += len(line) + 1
        return line.decode()

    def _number(self, layout: str) -> None:
        self._push(self._take(layout), NUMBER)

    def _long(self) -> None:
        self._push(int.from_bytes(self._piece(self._take("<B")), "little", signed=True), NUMBER + 255)

    def _text(self, layout: str) -> None:
        count = self._take(layout)
        if count > LONGEST_TEXT:
            raise ValueError(f"a string of {count} bytes")
        text = str(self._piece(count), "utf-8", "surrogatepass")
        self._push(text, sys.getsizeof(text))

    def _bytes(self, layout: str) -> None:
        piece = self._piece(self._take(layout))
        if len(piece) <= LONGEST_COPY:
            self._push(bytes(piece), len(piece) + CONTAINER)
        else:
            self._push(piece, VIEW)

    def _tuple(self, items: list[Any]) -> None:
        self._push(tuple(items), CONTAINER + REFERENCE * len(items))

    def _tuple_of(self, count: int) -> None:
        self._tuple([self._pop() for _ in range(count)][::-1])

    def _append(self, items: list[Any]) -> None:
        target = self._top(list)
        self.spend(REFERENCE * len(items))
        target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._top(dict)
        if len(items) % 2:
            raise ValueError("a key without a value")
        self.spend(DICT_ITEM * len(items) // 2)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def _put(self, index: int) -> None:
        """Picklers number memo entries 0, 1, 2, ...; other numbers could need unbounded memory."""
        if index > len(self._memo):
            raise ValueError(f"memo {index} after {len(self._memo)} entries")
        self.spend(REFERENCE)
        self._memo[index : index + 1] = [self._stack[-1]]

    def _find(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > LONGEST_NAME:
            raise ValueError(f"a name that is not a string, or of more than {LONGEST_NAME} characters")
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full in self._names:
            self._push(self._names[full], REFERENCE)
        elif full.startswith(self._records) and name.lstrip("_")[:1].isupper():
            self._push(Record(full), VIEW)
        else:
            raise RestrictedPickleError(
                f"refused: it references {shown(full)}, which is neither array, tensor nor plain container"
            )

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(arguments, tuple) or not callable(function):
            raise ValueError("a call of something that is not a function")
        self.spend(VIEW + REFERENCE * len(arguments))
        self._stack.append(function(self.spend, *arguments))

    def _build(self) -> None:
        state, target = self._pop(), self._stack[-1]
        if isinstance(target, Array):
            target.value = array_from_state(self.spend, state)
        elif isinstance(target, DType):
            target.dtype = dtype_from_state(target.dtype, state)
        elif isinstance(target, Record):
            target.state = state
        elif type(target) is not dict:  # attributes of an OrderedDict (state_dict's _metadata) are dropped
            raise ValueError(f"state for a {type(target).__name__}")

    def _persistent_id(self) -> None:
        if self._persistent is None:
            raise ValueError("a persistent id: is it a torch file?")
        self._push(self._persistent(self._pop()), VIEW)


_STOP = ord(".")
_CONSTANTS: dict[int, Any] = {ord("("): MARK, ord("N"): None, 0x88: True, 0x89: False, ord(")"): ()}
_HANDLERS: dict[int, Callable[[Machine], None]] = {
    0x80: lambda m: m._skip(1),  # protocol
    0x95: lambda m: m._skip(8),  # frame
    ord("J"): lambda m: m._number("<i"),
    ord("K"): lambda m: m._number("<B"),
    ord("M"): lambda m: m._number("<H"),
    ord("G"): lambda m: m._number(">d"),
    0x8A: Machine._long,
    ord("X"): lambda m: m._text("<I"),
    0x8C: lambda m: m._text("<B"),
    ord("B"): lambda m: m._bytes("<I"),
    ord("C"): lambda m: m._bytes("<B"),
    0x8E: lambda m: m._bytes("<Q"),
    0x96: lambda m: m._bytes("<Q"),
    ord("]"): lambda m: m._push([], CONTAINER),
    ord("}"): lambda m: m._push({}, CONTAINER),
    ord("t"): lambda m: m._tuple(m._pop_to_mark()),
    0x85: lambda m: m._tuple_of(1),
    0x86: lambda m: m._tuple_of(2),
    0x87: lambda m: m._tuple_of(3),
    ord("a"): lambda m: m._append([m._pop()]),
    ord("e"): lambda m: m._append(m._pop_to_mark()),
    ord("s"): lambda m: m._set([m._pop(), m._pop()][::-1]),
    ord("u"): lambda m: m._set(m._pop_to_mark()),
    ord("c"): lambda m: m._find(m._line(), m._line()),
    0x93: lambda m: m._find(*[m._pop(), m._pop()][::-1]),
    ord("R"): Machine._call,
    0x81: Machine._call,
    ord("b"): Machine._build,
    ord("q"): lambda m: m._put(m._take("<B")),
    ord("r"): lambda m: m._put(m._take("<I")),
    0x94: lambda m: m._put(len(m._memo)),
    ord("h"): lambda m: m._push(m._memo[m._take("<B")], REFERENCE),
    ord("j"): lambda m: m._push(m._memo[m._take("<I")], REFERENCE),
    ord("Q"): Machine._persistent_id,
}
