"""The state of a pickle under way, and what an opcode can do with it (see opcodes.py)."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from echotts.pickles.values import (
    Array,
    DType,
    Record,
    RestrictedPickleError,
    Unresolved,
    array_from_state,
    dtype_from_state,
    flat_key,
    shown,
)

MARK = object()
_LONGEST_LINE = 1 << 16


class Machine:
    """One pickle under way: its bytes, the stack and the memo. It calls what `names` permits, and nothing else.

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
        self._data, self._path, self._names, self._records, self.persistent = data, path, names, records, persistent
        self._position = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        end = self._position + count
        if count < 0 or end > len(self._data):
            raise EOFError("cut off")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def line(self) -> bytes:
        """The bytes to the end of the line."""
        window = bytes(self._data[self._position : self._position + _LONGEST_LINE])
        line, newline, _ = window.partition(b"\n")
        if not newline:
            raise EOFError("a line without an end")
        self._position += len(line) + 1
        return line

    def number(self, layout: str) -> Any:
        """The next number, in a layout of struct."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        """The value on top, which is taken off; never a mark."""
        value = self.stack.pop()
        if value is MARK:
            raise ValueError("a mark where a value must be")
        return value

    def top(self, kind: type | tuple[type, ...]) -> Any:
        """The container on top, which stays."""
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"a {type(self.stack[-1]).__name__} is used as a container")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        """All above the last mark, which is taken off with it."""
        stack = self.stack
        index = len(stack) - 1
        while stack[index] is not MARK:
            index -= 1
            if index < 0:
                raise ValueError("no mark")
        items = stack[index + 1 :]
        del stack[index:]
        return items

    def set_items(self, items: list[Any]) -> None:
        """Sets key, value, key, value, ... in the dict on top."""
        target = self.top((dict, Record))
        if isinstance(target, Record) or len(items) % 2:
            raise ValueError("items for something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[flat_key(key)] = value

    def find(self, module: Any, name: Any) -> None:
        """Pushes what stands for the name; RestrictedPickleError where it is not permitted."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        module = {"__builtin__": "builtins"}.get(module, module)
        full = f"{module}.{name}"
        if full in self._names:
            self.push(Unresolved(full, self._names[full]))
        elif full.startswith(self._records) and name.lstrip("_")[:1].isupper():
            self.push(Unresolved(full, lambda *arguments: Record(full, arguments)))
        else:
            raise RestrictedPickleError(
                f"{self._path}: refused: it asks for {shown(full)}, which is neither array, tensor nor plain container"
            )

    def call(self, function: Any, arguments: Any) -> None:
        """Pushes what a permitted function makes of the arguments."""
        if not isinstance(function, Unresolved) or not callable(function.value):
            raise ValueError("a call of something that is no function")
        if not isinstance(arguments, tuple):
            raise ValueError(f"a call of {function.name} without arguments")
        self.push(function.value(*arguments))

    def build(self, state: Any) -> None:
        """Gives the object on top its state."""
        target = self.stack[-1]
        if isinstance(target, Array):
            target.value = array_from_state(state)
        elif isinstance(target, DType):
            target.dtype = dtype_from_state(target.dtype, state)
        elif isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):  # attributes of an OrderedDict (state_dict's _metadata) are dropped
            raise ValueError(f"state for a {type(target).__name__}")
