"""Recordings with their texts, before they become latents: tables, LJSpeech folders, folders of pairs, audio shards.

| source | layout |
|---|---|
| `metadata.csv` without a header | LJSpeech: `id|text|normalised text` beside `wavs/id.wav`; the last column is used |
| `.csv`, `.tsv` with a header | columns audio, text, and if known speaker, language |
| `.jsonl` | objects with the same names |
| a folder with one of these | that table |
| a folder of recordings | each with a `.txt` of the same name; below the top, the folder is the speaker |
| `.tar`, `.tar.gz`, a glob or folder of them | `{key}.opus` (wav, flac, ogg, mp3) beside `{key}.json` |
"""

import csv
import io
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from echotts.audio import AUDIO_SUFFIXES, LONGEST_S, TooLong, open_recording, read_audio
from echotts.data.format.shards import MAX_JSON_BYTES, parse_meta
from echotts.data.format.tars import Entry, TarFile
from echotts.data.remote.sources import resolve
from echotts.rundir.rejections import Rejected

SHARD_SUFFIXES = (".tar", ".tar.gz")
TABLE_NAMES = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
MAX_AUDIO_BYTES = 1 << 30
KEPT_TARS = 8


@dataclass(frozen=True)
class Recording:
    """One clip and what is said in it. `meta` is not validated yet; `member` is its key inside a tar."""

    key: str
    meta: dict[str, Any]
    file: Path
    member: str | None = None
    fault: Rejected | None = None

    @property
    def origin(self) -> str:
        """Where it comes from, for reports."""
        return str(self.file) if self.member is None else f"{self.file}/{self.member}"

    def checked_meta(self) -> dict[str, Any]:
        """text, speaker, language. Raises Rejected."""
        if self.fault is not None:
            raise self.fault
        known = {name: self.meta.get(name) or None for name in ("text", "speaker", "language")}
        return parse_meta(json.dumps(known).encode())


def list_recordings(source: str, speaker: str | None = None, language: str | None = None) -> list[Recording]:
    """All clips of a source in a fixed order, with keys that do not repeat.

    `speaker` and `language` are for clips whose source does not say. ValueError, FileNotFoundError: one line.
    """
    found = list(_recordings(source))
    if not found:
        raise ValueError(f"{source}: no recordings in it")
    defaults = {name: value for name, value in (("speaker", speaker), ("language", language)) if value}
    width = len(str(len(found) - 1))
    return [
        replace(
            recording,
            key=f"{number:0{width}d}_{re.sub(r'[^A-Za-z0-9_-]+', '-', recording.key)[:48]}",
            meta=defaults | {name: value for name, value in recording.meta.items() if value},
        )
        for number, recording in enumerate(found)
    ]


class RecordingReader:
    """Reads clips from files and tars; a few tars stay open. Safe to use from several threads."""

    def __init__(self) -> None:
        self._tars: OrderedDict[Path, tuple[TarFile, dict[str, Entry]]] = OrderedDict()
        self._lock = threading.Lock()

    def read(
        self,
        recording: Recording,
        sample_rate: int,
        max_s: float = LONGEST_S,
        *,
        start_s: float = 0.0,
        limit_s: float | None = None,
    ) -> Float[np.ndarray, " n"]:
        """Mono float32 at `sample_rate`, all or a part. Raises Rejected when it cannot be decoded, or is too long."""
        source = self._source(recording)
        try:
            return read_audio(source, sample_rate, start_s=start_s, limit_s=limit_s, max_s=max_s, name=recording.origin)
        except TooLong as error:
            raise Rejected("too_long", str(error)) from None
        except (ValueError, FileNotFoundError) as error:
            if isinstance(error, Rejected):
                raise
            raise Rejected("unreadable_audio", str(error)) from None

    def seconds(self, recording: Recording) -> float:
        """Length, from the header where it says so. Raises Rejected when it cannot be read."""
        try:
            sound = open_recording(self._source(recording), name=recording.origin)
            frames = sound.frames if sound.frames is not None else sum(map(len, sound.blocks()))
            return frames / sound.rate
        except (ValueError, FileNotFoundError) as error:
            raise Rejected("unreadable_audio", str(error)) from None

    def _source(self, recording: Recording) -> Path | io.BytesIO:
        return recording.file if recording.member is None else io.BytesIO(self._member(recording))

    def _member(self, recording: Recording) -> bytes:
        with self._lock:
            if recording.file not in self._tars:
                tar = TarFile(recording.file)
                self._tars[recording.file] = tar, {entry.key: entry for entry in tar.entries}
            if len(self._tars) > KEPT_TARS:
                self._tars.popitem(last=False)[1][0].close()
            tar, entries = self._tars[recording.file]
            entry = entries[str(recording.member)]
            return tar.read(entry, _audio_suffix(entry), MAX_AUDIO_BYTES)

    def close(self) -> None:
        for tar, _ in self._tars.values():
            tar.close()
        self._tars.clear()

    def __enter__(self) -> "RecordingReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _recordings(source: str) -> Iterator[Recording]:
    path = Path(source).expanduser()
    if path.is_dir():
        table = next((path / name for name in TABLE_NAMES if (path / name).is_file()), None)
        if table is not None:
            return _table(table)
        if any(file.name.endswith(SHARD_SUFFIXES) for file in path.iterdir()):
            return _shards(resolve(source, SHARD_SUFFIXES))
        return _pairs(path)
    if path.suffix in (".csv", ".tsv", ".jsonl"):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such table")
        return _table(path)
    files = resolve(source, SHARD_SUFFIXES)
    if not all(file.name.endswith(SHARD_SUFFIXES) for file in files):
        raise ValueError(f"{source}: neither a folder, a .csv, .tsv or .jsonl table, nor .tar shards of recordings")
    return _shards(files)


def _table(path: Path) -> Iterator[Recording]:
    rows = _json_rows(path) if path.suffix == ".jsonl" else _csv_rows(path)
    for row in rows:
        audio = path.parent / str(row["audio"])
        yield Recording(audio.stem, {name: row.get(name) for name in ("text", "speaker", "language")}, audio)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict) or not row.get("audio"):
                raise ValueError(f"{path}, line {number}: not an object with audio and text")
            yield row


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    first = text.split("\n", 1)[0]
    delimiter = next((mark for mark in "\t|" if mark in first), ",")
    header = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
    if {"audio", "text"} <= set(header):
        rows: Iterable[Sequence[str]] = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        for number, row in enumerate(rows):
            if number and any(row):
                if len(row) != len(header):
                    raise ValueError(f"{path}, row {number + 1}: {len(row)} columns, the header has {len(header)}")
                yield dict(zip(header, row, strict=True))
    elif delimiter == "|" and (path.parent / "wavs").is_dir():
        yield from _ljspeech_rows(path, text)
    else:
        raise ValueError(
            f"{path}: begins with {first[:60]!r}; expected a header with audio and text (and speaker, language), "
            "or LJSpeech lines id|text beside a folder wavs"
        )


def _ljspeech_rows(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """Its texts hold quotation marks that quote nothing, so lines are only split. There is one speaker."""
    for number, line in enumerate(text.splitlines(), 1):
        columns = line.split("|")
        if not line.strip():
            continue
        if len(columns) < 2:
            raise ValueError(f"{path}, line {number}: {line[:60]!r}, expected id|text")
        spoken = next((column for column in reversed(columns[1:3]) if column.strip()), "")
        yield {"audio": f"wavs/{columns[0]}.wav", "text": spoken, "speaker": path.resolve().parent.name}


def _pairs(folder: Path) -> Iterator[Recording]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            audio = Path(place, name)
            text = audio.with_suffix(".txt")
            if audio.suffix.lower() not in AUDIO_SUFFIXES or not text.is_file():
                continue
            speaker = None if audio.parent == folder else audio.parent.name
            words = text.read_text(encoding="utf-8-sig", errors="replace").strip()
            yield Recording(audio.stem, {"text": words, "speaker": speaker}, audio)


def _shards(files: Sequence[Path]) -> Iterator[Recording]:
    for file in files:
        with TarFile(file) as tar:
            if tar.faults:
                raise ValueError(f"{file}: {tar.faults[0].cause}: {tar.faults[0].detail}: copy it again")
            for entry in tar.entries:
                if not any(f".{suffix}" in AUDIO_SUFFIXES for suffix in entry.members):
                    continue
                meta, fault = {}, None
                try:
                    meta = parse_meta(tar.read(entry, "json", MAX_JSON_BYTES))
                except Rejected as error:
                    fault = error
                if entry.fault is not None:
                    fault = Rejected(entry.fault.cause, entry.fault.detail)
                yield Recording(entry.key.rpartition("/")[2], meta, file, entry.key, fault)


def _audio_suffix(entry: Entry) -> str:
    return next(suffix for suffix in sorted(entry.members) if f".{suffix}" in AUDIO_SUFFIXES)
