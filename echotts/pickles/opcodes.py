"""Runs a pickle: its opcodes, by name as in pickletools.

Each handler does what the pickle documentation says, on plain values only.
"""

import codecs
from collections.abc import Callable
from typing import Any

from echotts.pickles.machine import MARK, Machine
from echotts.pickles.values import flat_key, members, plain

_LONGEST_COPY = 1 << 12  # longer byte strings stay views of the file


def run(machine: Machine) -> Any:
    """The value of the pickle. Raises RestrictedPickleError, or an ordinary error when the file is malformed."""
    while True:
        code = machine.take(1)[0]
        if code == _STOP:
            return plain(machine.pop(), {})
        handler = _HANDLERS.get(code)
        if handler is None:
            raise ValueError(f"opcode 0x{code:02x}")
        handler(machine)


def _op_mark(m: Machine) -> None:
    m.push(MARK)


def _op_pop(m: Machine) -> None:
    m.stack.pop()


def _op_pop_mark(m: Machine) -> None:
    m.pop_to_mark()


def _op_dup(m: Machine) -> None:
    m.push(m.stack[-1])


def _op_int_line(m: Machine) -> None:
    line = m.line()
    m.push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line))


def _op_long_line(m: Machine) -> None:
    m.push(int(m.line().rstrip(b"L")))


def _op_float_line(m: Machine) -> None:
    m.push(float(m.line()))


def _op_string_line(m: Machine) -> None:
    line = m.line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("a string without quotes")
    m.push(codecs.escape_decode(line[1:-1])[0].decode("latin1"))  # pyright: ignore[reportAttributeAccessIssue]


def _op_unicode_line(m: Machine) -> None:
    m.push(m.line().decode("raw-unicode-escape"))


def _integer(layout: str) -> Callable[[Machine], None]:
    return lambda m: m.push(m.number(layout))


def _op_long(layout: str) -> Callable[[Machine], None]:
    def handler(m: Machine) -> None:
        count = m.number(layout)
        if count > 1024:
            raise ValueError("an absurdly long number")
        m.push(int.from_bytes(m.take(count), "little", signed=True))

    return handler


def _text(layout: str, encoding: str = "utf-8", errors: str = "surrogatepass") -> Callable[[Machine], None]:
    return lambda m: m.push(str(m.take(m.number(layout)), encoding, errors))


def _octets(layout: str) -> Callable[[Machine], None]:
    def handler(m: Machine) -> None:
        piece = m.take(m.number(layout))
        m.push(bytes(piece) if len(piece) <= _LONGEST_COPY else piece)

    return handler


def _constant(value: Any) -> Callable[[Machine], None]:
    return lambda m: m.push(value)


def _op_tuple_of(count: int) -> Callable[[Machine], None]:
    def handler(m: Machine) -> None:
        m.push(tuple([m.pop() for _ in range(count)][::-1]))

    return handler


def _op_dict(m: Machine) -> None:
    items = m.pop_to_mark()
    m.push({})
    m.set_items(items)


def _op_append(m: Machine) -> None:
    item = m.pop()
    m.top(list).append(item)


def _op_appends(m: Machine) -> None:
    items = m.pop_to_mark()
    m.top(list).extend(items)


def _op_set_item(m: Machine) -> None:
    value, key = m.pop(), m.pop()
    m.set_items([key, value])


def _op_add_items(m: Machine) -> None:
    items = m.pop_to_mark()
    m.top(set).update(flat_key(item) for item in items)


def _op_global(m: Machine) -> None:
    module, name = m.line().decode(), m.line().decode()
    m.find(module, name)


def _op_stack_global(m: Machine) -> None:
    name, module = m.pop(), m.pop()
    m.find(module, name)


def _op_inst(m: Machine) -> None:
    _op_global(m)
    function = m.pop()
    m.call(function, tuple(m.pop_to_mark()))


def _op_obj(m: Machine) -> None:
    function, *arguments = m.pop_to_mark()
    m.call(function, tuple(arguments))


def _op_reduce(m: Machine) -> None:
    arguments, function = m.pop(), m.pop()
    m.call(function, arguments)


def _op_new_keywords(m: Machine) -> None:
    keywords, arguments, function = m.pop(), m.pop(), m.pop()
    if keywords:
        raise ValueError("a call with keywords")
    m.call(function, arguments)


def _op_build(m: Machine) -> None:
    m.build(m.pop())


def _put(read: Callable[[Machine], int]) -> Callable[[Machine], None]:
    def handler(m: Machine) -> None:
        m.memo[read(m)] = m.stack[-1]

    return handler


def _get(read: Callable[[Machine], int]) -> Callable[[Machine], None]:
    return lambda m: m.push(m.memo[read(m)])


def _op_memoize(m: Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


def _op_persistent(m: Machine) -> None:
    if m.persistent is None:
        raise ValueError("a persistent id: is it a torch file?")
    m.push(m.persistent(m.pop()))


def _skip(count: int) -> Callable[[Machine], None]:
    def handler(m: Machine) -> None:
        m.take(count)

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
        "]": lambda m: m.push([]),
        "}": lambda m: m.push({}),
        "\x8f": lambda m: m.push(set()),
        "t": lambda m: m.push(tuple(m.pop_to_mark())),
        "\x85": _op_tuple_of(1),
        "\x86": _op_tuple_of(2),
        "\x87": _op_tuple_of(3),
        "l": lambda m: m.push(m.pop_to_mark()),
        "d": _op_dict,
        "a": _op_append,
        "e": _op_appends,
        "s": _op_set_item,
        "u": lambda m: m.set_items(m.pop_to_mark()),
        "\x90": _op_add_items,
        "\x91": lambda m: m.push(frozenset(members(m.pop_to_mark()))),
        "c": _op_global,
        "\x93": _op_stack_global,
        "i": _op_inst,
        "o": _op_obj,
        "R": _op_reduce,
        "\x81": _op_reduce,
        "\x92": _op_new_keywords,
        "b": _op_build,
        "p": _put(lambda m: int(m.line())),
        "q": _put(lambda m: m.number("<B")),
        "r": _put(lambda m: m.number("<I")),
        "\x94": _op_memoize,
        "g": _get(lambda m: int(m.line())),
        "h": _get(lambda m: m.number("<B")),
        "j": _get(lambda m: m.number("<I")),
        "Q": _op_persistent,
        "\x80": _skip(1),
        "\x95": _skip(8),
        "\x98": lambda m: None,
    }.items()
}
