"""The rows of a table of recordings: .jsonl, .csv, .tsv, or LJSpeech's metadata.csv (see recordings.py)."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from echotts.files import read_text
from echotts.rundir.rejections import Rejected
from echotts.strict_json import load_json

MAX_ROW_BYTES = 8 << 20

Row = tuple[int, dict[str, Any] | Rejected]  # (line number from 1, row)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows, with at least audio and text. ValueError names a line that cannot be read."""
    text = read_text(path)
    return _json_rows(path, text) if path.suffix == ".jsonl" else _delimited_rows(path, text)


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = load_json(line, f"{path}, line {number}", max_bytes=MAX_ROW_BYTES)
        except ValueError as error:
            if "surrogate" not in str(error):
                raise
            yield number, Rejected("bad_json", str(error))
            continue
        if not isinstance(row, dict) or not row.get("audio"):
            raise ValueError(f"{path}, line {number}: not an object with audio and text")
        yield number, row


def _delimited_rows(path: Path, text: str) -> Iterator[Row]:
    lines = text.split("\n")
    delimiter = next((mark for mark in "\t|" if mark in lines[0]), ",")
    rows = _quoted_rows(path, lines) if delimiter == "," else _split_rows(lines, delimiter)
    _, header = next(rows, (0, []))
    header = [name.strip().lower() for name in header]
    if {"audio", "text"} <= set(header):
        if twice := [name for name in ("audio", "text", "speaker", "language") if header.count(name) > 1]:
            raise ValueError(f"{path}: two columns are called {twice[0]}: rename the one that is not meant")
        for number, row in rows:
            if len(row) != len(header):
                raise ValueError(f"{path}, row {number}: {len(row)} columns, the header has {len(header)}")
            yield number, dict(zip(header, row, strict=True))
    elif delimiter == "|" and (path.parent / "wavs").is_dir():
        yield from _ljspeech_rows(path, lines)
    else:
        raise ValueError(
            f"{path}: starts with {lines[0][:60]!r}; expected a header with audio and text (and speaker, language), "
            "or LJSpeech lines id|text beside a folder wavs"
        )


def _quoted_rows(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Comma-separated values; quoted ones may contain commas and line feeds. A row has the number of its first line."""
    reader = csv.reader((f"{line}\n" for line in lines), strict=True)
    number = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            hint = "look for an unclosed quotation mark"
            if "new-line" in str(error):
                error, hint = "a carriage return inside a value", "rows end at line feeds: save the table with them"
            raise ValueError(f"{path}, row {number}: {error}: {hint}") from None
        if row is None:
            return
        if any(row):
            yield number, row
        number = reader.line_num + 1


def _split_rows(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Splits lines at the delimiter; quotation marks have no meaning."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line.removesuffix("\r").split(delimiter)


def _ljspeech_rows(path: Path, lines: Sequence[str]) -> Iterator[Row]:
    """LJSpeech has a single speaker."""
    for number, columns in _split_rows(lines, "|"):
        if len(columns) < 2:
            raise ValueError(f"{path}, line {number}: {columns[0][:60]!r}, expected id|text")
        spoken = next((column for column in reversed(columns[1:3]) if column.strip()), "")
        yield number, {"audio": f"wavs/{columns[0]}.wav", "text": spoken, "speaker": path.resolve().parent.name}
