"""Scripts: tables of lines to speak to a file each, as JSON Lines or CSV with a header.

| field | meaning |
|---|---|
| text | what to speak (required) |
| voice | name of a saved voice |
| speaker_ref | a recording of the voice, relative to the script, instead of `voice` |
| pause | silence after the speech, in seconds |
| seed, duration, speed | as of `echotts speak`, instead of the one of the command |
| output | name of the file in the output folder; default: the number of the line with five digits, and .wav |
"""

import csv
import dataclasses
import difflib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from echotts.audio import check_suffix
from echotts.config import check_seed
from echotts.files import read_text
from echotts.strict_json import check_type, load_json
from echotts.synthesis.length import check_speed
from echotts.synthesis.references import check_recording
from echotts.synthesis.voices import find_voice
from echotts.text.pace import has_sound

MOST_BYTES, MOST_ROWS = 64 << 20, 100_000
MOST_PAUSE_S, MOST_DURATION_S = 60.0, 3600.0
MOST_NAME = 200  # characters of an output


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields of a line as they are in the script."""

    text: str
    voice: str | None = None
    speaker_ref: str | None = None
    pause: float = 0.0
    seed: int | None = None
    duration: Literal["auto"] | float | None = None
    speed: float | None = None
    output: str | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line to speak. `line` is its number in the script, `output` is below the output folder."""

    line: int
    fields: Fields
    reference: Path | None
    output: PurePosixPath


@dataclass(frozen=True)
class Failure:
    """A line that cannot be spoken, with a message that names file and line."""

    line: int
    message: str


NAMES = tuple(field.name for field in dataclasses.fields(Fields))


def read_script(path: Path, folder: Path) -> tuple[list[Row], list[Failure]]:
    """The lines of a script for output below `folder`, and those that cannot be spoken.

    Raises ValueError if the file is no table of lines, or two lines have the same output; OSError if it is unreadable.
    """
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}: give a script as .jsonl or .csv")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path}: {size} bytes exceed the limit of {MOST_BYTES}: split the script")
    text = read_text(path)
    found = _json_lines(path, text) if path.suffix.lower() == ".jsonl" else _csv_lines(path, text)
    rows: list[Row] = []
    failures: list[Failure] = []
    for line, fields in found:
        if len(rows) + len(failures) == MOST_ROWS:
            raise ValueError(f"{path}: more than {MOST_ROWS} lines: split the script")
        try:
            rows.append(_checked(path, line, fields(), folder))
        except (ValueError, OSError) as error:
            place = f"{path}, line {line}"
            message = str(error)
            failures.append(Failure(line, message if message.startswith(place) else f"{place}: {message}"))
    if not rows and not failures:
        raise ValueError(f"{path}: the script has no lines")
    _check_outputs(path, rows, folder)
    return rows, failures


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Callable[[], Fields]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, lambda line=line, number=number: load_json(line, f"{path}, line {number}", Fields)


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, Callable[[], Fields]]]:
    """Rows of a CSV table; the number is that of the line where a row ends."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for name in header:
            if name not in NAMES or header.count(name) > 1:
                near = difflib.get_close_matches(name, NAMES, n=1)
                hint = f", did you mean {near[0]}?" if near and name not in NAMES else ""
                raise ValueError(f"{path}, line 1: column {name!r}{hint} (columns are {', '.join(NAMES)}, once each)")
        if "text" not in header:
            raise ValueError(f"{path}, line 1: has no column text (columns are {', '.join(NAMES)})")
        for values in reader:
            if any(values):
                where = f"{path}, line {reader.line_num}"
                yield reader.line_num, lambda values=values, where=where: _converted(header, values, where)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: is not CSV ({error})") from None


def _converted(header: list[str], values: list[str], where: str) -> Fields:
    if len(values) != len(header):
        raise ValueError(f"has {len(values)} values for {len(header)} columns")
    row: dict[str, Any] = {name: value for name, value in zip(header, values, strict=True) if value}
    for name, kind in (("seed", int), ("pause", float), ("duration", float), ("speed", float)):
        if name in row and row[name] != "auto":
            try:
                row[name] = kind(row[name])
            except ValueError:
                raise ValueError(f"{name} {row[name]!r} is not a number") from None
    return check_type({"text": ""} | row, where, Fields)


def _checked(path: Path, line: int, fields: Fields, folder: Path) -> Row:
    if not has_sound(fields.text):
        raise ValueError(f"the text {fields.text.strip()[:40]!r} contains no letter or digit")
    if not 0 <= fields.pause <= MOST_PAUSE_S:
        raise ValueError(f"pause {fields.pause} s: give 0 to {MOST_PAUSE_S:.0f} seconds")
    if isinstance(fields.duration, float) and not 0 < fields.duration <= MOST_DURATION_S:
        raise ValueError(f"duration {fields.duration} s: give seconds above 0, at most {MOST_DURATION_S:.0f}")
    if fields.speed is not None:
        check_speed(fields.speed)
    if fields.seed is not None:
        check_seed(fields.seed)
    if fields.voice is not None and fields.speaker_ref is not None:
        raise ValueError("has both voice and speaker_ref: give one of them")
    reference = None
    if fields.voice is not None:
        reference = find_voice(fields.voice)
    if fields.speaker_ref is not None:
        reference = path.parent / fields.speaker_ref
        check_recording(reference)
    return Row(line=line, fields=fields, reference=reference, output=_output(fields.output, line, folder))


def _output(name: str | None, line: int, folder: Path) -> PurePosixPath:
    """The path of an output below the folder. ValueError if it would be elsewhere."""
    if name is None:
        return PurePosixPath(f"{line:05d}.wav")
    output = PurePosixPath(name)
    if not output.parts or not name.isprintable() or len(name) > MOST_NAME or "\\" in name:
        raise ValueError(f"output {name[:40]!r}: give a file name of at most {MOST_NAME} printable characters")
    if output.is_absolute() or any(part.startswith(".") for part in output.parts):
        raise ValueError(f"output {name!r}: give a name in the output folder, without a leading / or .")
    check_suffix(name)
    if not (folder / output).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"output {name!r}: a link leads out of the output folder")
    return output


def _check_outputs(path: Path, rows: list[Row], folder: Path) -> None:
    """ValueError if two rows have the same output, or a row would replace a recording that a row reads."""
    taken: dict[PurePosixPath, int] = {}
    read = {row.reference.resolve(): row.line for row in rows if row.reference is not None}
    for row in rows:
        where = f"{path}, line {row.line}: the output {row.output}"
        first = taken.setdefault(row.output, row.line)
        if first != row.line:
            raise ValueError(f"{where} is that of line {first}, too: change one")
        if reader := read.get((folder / row.output).resolve()):
            raise ValueError(f"{where} is the voice of line {reader}: change it")
