"""Lists and reads recordings with their texts: tables, LJSpeech folders, folders of pairs, audio shards.

| source | layout |
|---|---|
| `metadata.csv` without a header | LJSpeech: `id|text|normalised text` beside `wavs/id.wav`; the last column is used |
| `.csv`, `.tsv` with a header | columns audio, text, and if known speaker, language, separated by commas, tabs or `|` |
| `.jsonl` | objects with the same names |
| a folder with one of these | that table |
| a folder of recordings | each with a `.txt` of the same name; below the top, the folder is the speaker |
| `.tar`, `.tar.gz`, a glob or folder of them | `{key}.opus` (wav, flac, ogg, mp3) beside `{key}.json` |

Text files are UTF-8; lines end only at a line feed. Comma-separated values may be quoted, values separated by tabs or
`|` never are. Every recording that is found becomes a sample or a rejection.
"""

import io
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from echotts.audio import AUDIO_SUFFIXES, LONGEST_S, TooLong, open_recording, read_audio
from echotts.data.format.shards import MAX_JSON_BYTES, parse_meta
from echotts.data.format.tars import Entry, TarFile
from echotts.data.prepare.tables import read_rows
from echotts.data.remote.sources import TABLE_NAMES, is_hidden, is_shard, resolve
from echotts.files import Closing, plain, read_text
from echotts.rundir.rejections import Rejected

UNREADABLE_SUFFIXES = (".wma", ".amr", ".ape", ".wv", ".spx", ".mp2", ".3gp", ".mka")  # counted as rejected recordings
SHARD_SUFFIXES = (".tar", ".tar.gz")
MAX_AUDIO_BYTES = 1 << 30
KEPT_TARS = 8


@dataclass(frozen=True)
class Recording:
    """One clip and its text. `meta` is not validated yet; `member` is its key inside a tar."""

    key: str
    meta: dict[str, Any]
    file: Path
    member: str | None = None
    fault: Rejected | None = None

    @property
    def origin(self) -> str:
        """Its origin, for reports; bytes of a name that are not UTF-8 are escaped."""
        return plain(str(self.file) if self.member is None else f"{self.file}/{self.member}")

    def checked_meta(self) -> dict[str, Any]:
        """Validated text, speaker and language. Raises Rejected."""
        if self.fault is not None:
            raise Rejected(self.fault.cause, self.fault.detail)
        known = {name: self.meta.get(name) or None for name in ("text", "speaker", "language")}
        return parse_meta(json.dumps(known).encode())


def list_recordings(source: str, speaker: str | None = None, language: str | None = None) -> list[Recording]:
    """All clips of a source in a fixed order, with unique keys.

    `speaker` and `language` are defaults for clips whose source lacks them. ValueError and FileNotFoundError have
    one-line messages.
    """
    found = list(_recordings(source))
    if not found:
        raise ValueError(f"{source}: contains no recordings")
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


def check_source(source: str) -> None:
    """Raises the errors of `list_recordings` for a missing source, without reading it."""
    _recordings(source)


class RecordingReader(Closing):
    """Reads clips from files and tars; a few tars stay open. Thread-safe."""

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
        """All or part of a clip as mono float32 at `sample_rate`. Raises Rejected if undecodable or too long."""
        source = self._source(recording)
        try:
            return read_audio(source, sample_rate, start_s=start_s, limit_s=limit_s, max_s=max_s, name=recording.origin)
        except TooLong as error:
            raise Rejected("too_long", str(error)) from None
        except Rejected:
            raise
        except ValueError as error:
            raise Rejected("unreadable_audio", str(error)) from None
        except OSError as error:
            if recording.member is not None:  # the shard itself
                raise
            reason = str(error) if error.strerror is None else f"{recording.file}: {error.strerror.lower()}"
            raise Rejected("unreadable_audio", reason) from None

    def seconds(self, recording: Recording) -> float:
        """Duration, from the header if possible. Raises Rejected if it cannot be read."""
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


def _recordings(source: str) -> Iterator[Recording]:
    path = Path(source).expanduser()
    if path.is_dir():
        table = next((path / name for name in TABLE_NAMES if (path / name).is_file()), None)
        if table is not None:
            return _table(table)
        if any(is_shard(file.name, SHARD_SUFFIXES) for file in path.iterdir()):
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
    for number, row in read_rows(path):
        if isinstance(row, Rejected):
            yield Recording(f"row{number}", {}, path, fault=row)
            continue
        audio = path.parent / str(row["audio"])
        yield Recording(
            audio.stem,
            {name: row.get(name) for name in ("text", "speaker", "language")},
            audio,
            fault=_path_fault(audio),
        )


def _path_fault(audio: Path) -> Rejected | None:
    """Why this name is impossible on this machine, if it is."""
    try:
        if b"\0" in os.fsencode(audio):
            return Rejected("unreadable_audio", f"{str(audio)!r}: the name contains NUL")
    except UnicodeEncodeError:
        return Rejected(
            "unreadable_audio", f"{str(audio)!a}: the locale's encoding cannot represent this name: use a UTF-8 locale"
        )
    return None


def _pairs(folder: Path) -> Iterator[Recording]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        texts = {name.lower(): Path(place, name) for name in sorted(names) if name.lower().endswith(".txt")}
        for name in sorted(names):
            audio = Path(place, name)
            if audio.suffix.lower() not in (*AUDIO_SUFFIXES, *UNREADABLE_SUFFIXES) or is_hidden(name):
                continue
            speaker = None if audio.parent == folder else plain(audio.parent.name)
            exact = audio.with_suffix(".txt")
            words, fault = _words(exact if exact.is_file() else texts.get(exact.name.lower(), exact))
            yield Recording(audio.stem, {"text": words, "speaker": speaker}, audio, fault=_path_fault(audio) or fault)


def _words(file: Path) -> tuple[str, Rejected | None]:
    """The text of a recording, and what is wrong with it, if anything."""
    if not file.is_file():
        return "", Rejected("empty_text", f"there is no {file.name} beside the recording")
    try:
        return read_text(file).strip(), None
    except (OSError, ValueError) as error:
        return "", Rejected("bad_text", str(error))


def _shards(files: Sequence[Path]) -> Iterator[Recording]:
    for file in files:
        with TarFile(file) as tar:
            if tar.faults:
                raise ValueError(f"{file}: {tar.faults[0].cause}: {tar.faults[0].detail}: copy it again")
            for entry in tar.entries:
                if not any(suffix.endswith(_BARE_SUFFIXES) for suffix in entry.members):
                    continue
                meta, fault = {}, None
                try:
                    _audio_suffix(entry)
                    meta = parse_meta(tar.read(entry, "json", MAX_JSON_BYTES))
                except Rejected as error:
                    fault = error
                if entry.fault is not None:
                    fault = Rejected(entry.fault.cause, entry.fault.detail)
                yield Recording(entry.key.rpartition("/")[2], meta, file, entry.key, fault)


_BARE_SUFFIXES = tuple(suffix.removeprefix(".") for suffix in AUDIO_SUFFIXES)


def _audio_suffix(entry: Entry) -> str:
    """The suffix of the audio member. Raises Rejected if there is none, as for keys with dots."""
    found = [suffix for suffix in sorted(entry.members) if suffix in _BARE_SUFFIXES]
    if not found:
        has = ", ".join(sorted(entry.members)[:8])
        raise Rejected("member_missing", f"no recording, only {has}: a key ends at the first dot of the name")
    return found[0]
