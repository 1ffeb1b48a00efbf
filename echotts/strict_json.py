"""JSON from untrusted files and servers: limited size, nesting and numbers, one-line errors.

orjson rejects what the standard library accepts: NaN and infinity, numbers beyond float64, lone surrogates, invalid
UTF-8. Integers of more than 64 bits become floats, so a check for int rejects them.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec
import orjson

from echotts.files import read_lines

MAX_BYTES = 1 << 20
MAX_DEPTH = 32  # nesting of objects and arrays

Kind = TypeVar("Kind")


@overload
def load_json(data: bytes | str, where: str | Path, *, max_bytes: int = MAX_BYTES) -> Any: ...
@overload
def load_json(data: bytes | str, where: str | Path, kind: type[Kind], *, max_bytes: int = MAX_BYTES) -> Kind: ...
@overload
def load_json(data: bytes | str, where: str | Path, kind: Any, *, max_bytes: int = MAX_BYTES) -> Any: ...


def load_json(data: bytes | str, where: str | Path, kind: Any = None, *, max_bytes: int = MAX_BYTES) -> Any:
    """Parses a JSON document of at most `max_bytes`, nested at most 32 deep, and checks it against `kind` if given.

    `where` starts the message: a path, or path and line. A parsed document takes up to 25 times its bytes, in linear
    time. Raises ValueError.
    """
    if len(data) > max_bytes:
        raise ValueError(f"{where}: {len(data)} bytes of JSON exceed the limit of {max_bytes}")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    if not _is_shallow(data, value):
        raise ValueError(f"{where}: JSON nested more than {MAX_DEPTH} deep")
    return value if kind is None else check_type(value, where, kind)


def load_rows(path: Path, needs: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The objects in a growing .jsonl file, without an incomplete last line; none if the file does not exist.

    Raises ValueError naming a line that is not an object, or lacks a field in `needs`.
    """
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        row = load_json(line, f"{path}, line {number}", dict)
        if missing := [name for name in needs if name not in row]:
            raise ValueError(f"{path}, line {number}: has no {missing[0]}: delete the line, or the file to start over")
        rows.append(row)
    return rows


@overload
def check_type(value: Any, where: str | Path, kind: type[Kind]) -> Kind: ...
@overload
def check_type(value: Any, where: str | Path, kind: Any) -> Any: ...


def check_type(value: Any, where: str | Path, kind: Any) -> Any:
    """Converts a parsed value to `kind`: a dataclass, TypedDict, `dict[str, int]` or anything else msgspec supports.

    Types are not coerced (no "3" or True for an int), and unknown fields of a dataclass are rejected. A dataclass's
    `__post_init__` runs. Raises ValueError that names the field.
    """
    try:
        made = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {_plain(str(error))}") from error
    _refuse_unknown(value, made, where)
    return made


def _plain(message: str) -> str:
    """Rewrites msgspec's "Expected `int`, got `str` - at `$.text.width`" as "text.width: Expected int, got str"."""
    found = re.fullmatch(r"(.*) - at `(?:key in )?\$\.?(.*)`", message, re.DOTALL)
    what, place = found.groups() if found else (message, "")
    text = (f"{place}: " if place else "") + what.replace("`", "")
    return text.encode("unicode_escape").decode()[:300]


def _refuse_unknown(value: Any, made: Any, where: str | Path) -> None:
    if not dataclasses.is_dataclass(made) or not isinstance(value, dict):
        return
    known = {field.name for field in dataclasses.fields(made)}
    for name, part in value.items():
        if name not in known:
            raise ValueError(f"{where}: unknown field {name[:60]!r}: known fields are {', '.join(sorted(known))}")
        _refuse_unknown(part, getattr(made, name), where)


def _is_shallow(data: bytes | str, value: Any) -> bool:
    """Whether containers are nested at most MAX_DEPTH deep: by the number of brackets, or level by level."""
    opened = data.count("[") + data.count("{") if isinstance(data, str) else data.count(b"[") + data.count(b"{")
    if opened <= MAX_DEPTH:
        return True
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [node for node in level if isinstance(node, dict | list)]
        if not containers:
            return True
        level = [part for node in containers for part in (node.values() if isinstance(node, dict) else node)]
    return False
