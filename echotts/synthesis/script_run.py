"""Speaks the rows of a script, several at once, and continues where an interrupted run or a changed script requires it.

The manifest in the output folder has a line for each row with its figures, or its error. A row is finished if the
manifest has a line with the same key, a hash of all that its file depends on, and the file has the noted size.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from echotts import __version__
from echotts.files import sha256_file, write_whole
from echotts.flow.options import SamplerConfig
from echotts.strict_json import load_rows
from echotts.synthesis.candidates import Choose
from echotts.synthesis.length import Duration
from echotts.synthesis.recording import Level, record_text
from echotts.synthesis.script import Failure, Row
from echotts.synthesis.speech import Speech
from echotts.synthesis.tts import EchoTTS
from echotts.text.sentences import Piece

MANIFEST = "manifest.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all rows share; `seed`, `duration` and `speed` are those of rows without their own.

    `rows` are synthesised at once, in one compiled shape. `score` gives the figures of the last row's candidates.
    """

    seed: int
    duration: Duration
    sampler: SamplerConfig
    level: Level
    speed: float = 1.0
    reference: Path | None = None
    rows: int = 1
    candidates: int = 1
    choose: Choose | None = None
    score: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Tally:
    """How many rows a run has spoken, found finished, and failed to speak."""

    spoken: int
    finished: int
    failed: int


def run_script(
    tts: EchoTTS,
    script: Path,
    rows: Sequence[Row],
    failures: Sequence[Failure],
    folder: Path,
    options: Options,
    on_progress: Callable[[int, int, int], None] = lambda done, total, failed: None,
) -> Tally:
    """Speaks all rows that are not finished; a row that fails is logged, noted in the manifest and counted.

    Raises BlockingIOError if another process speaks to this folder, OSError if it cannot be written.
    """
    with _Manifest(folder) as manifest:
        run = _Run(tts, script, folder, options, manifest)
        for failure in failures:
            run.fail(failure.line, failure.message)
        pending = [row for row in rows if not run.is_finished(row)]
        done = len(rows) - len(pending)
        on_progress(done, len(rows), run.failed)
        for group, together in run.groups(pending):
            run.speak(group, together)
            done += len(group)
            on_progress(done, len(rows), run.failed)
        manifest.finish([row.line for row in rows] + [failure.line for failure in failures])
        return Tally(run.spoken, len(rows) - len(pending), run.failed)


class _Manifest:
    """The lines of a manifest by row, in a file to which finished ones are appended at once. One process has it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / MANIFEST
        self.lines: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> "_Manifest":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise BlockingIOError(
                f"{self._path.parent}: another process speaks to this folder: choose another"
            ) from None
        self.finished = {line["output"]: line for line in load_rows(self._path, ["line"]) if "output" in line}
        self._write(self.finished.values())  # without the incomplete last line of a killed process
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def add(self, line: dict[str, Any]) -> None:
        self.lines[line["line"]] = line
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def finish(self, order: Sequence[int]) -> None:
        """Leaves only the lines of this script, in its order."""
        self._write(self.lines[number] for number in sorted(order))

    def _write(self, lines: Any) -> None:
        write_whole(self._path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


class _Run:
    """One call of `run_script`."""

    def __init__(self, tts: EchoTTS, script: Path, folder: Path, options: Options, manifest: _Manifest) -> None:
        self._tts, self._script, self._folder, self._options, self._manifest = tts, script, folder, options, manifest
        self._voices: dict[Path, np.ndarray] = {}
        self._hashes: dict[Path, str] = {}
        self._pieces: dict[int, list[Piece]] = {}  # of rows, by line
        self._batch = 1
        self.spoken = self.failed = 0

    def is_finished(self, row: Row) -> bool:
        """Whether an earlier run has spoken this row as it is now; then its line in the manifest is kept."""
        line = self._manifest.finished.get(str(row.output))
        if line is None or line.get("key") != self._key(row):
            return False
        with contextlib.suppress(OSError):
            if (self._folder / row.output).stat().st_size == line.get("bytes"):
                self._manifest.lines[row.line] = line | {"line": row.line}
                return True
        return False

    def groups(self, rows: Sequence[Row]) -> Iterator[tuple[list[Row], bool]]:
        """Rows to be spoken together (True): those that fit the model's window, with equal windows and speeds."""
        waiting: dict[tuple[Duration, float, float], list[Row]] = {}
        self._batch = most = min(self._options.rows, max(1, len(rows)))
        for row in rows:
            try:
                self._pieces[row.line] = pieces = self._tts.split(row.fields.text, self._duration(row))
                self._voice(row)
            except (ValueError, OSError) as error:
                self.fail(row.line, f"{self._script}, line {row.line}: {error}")
                continue
            if len(pieces) > 1 or self._options.candidates > 1 or most == 1:
                yield [row], False
                continue
            duration = self._duration(row)
            window_s = self._tts.window_for(row.fields.text, self._voice(row), duration=duration)
            alike = duration, window_s, self._speed(row)
            group = waiting.setdefault(alike, [])
            group.append(row)
            if len(group) == most:
                yield waiting.pop(alike), True
        for group in waiting.values():
            yield group, True

    def speak(self, rows: list[Row], together: bool) -> None:
        """Speaks rows to their files, and notes them in the manifest."""
        began, speeches = time.process_time(), [None] * len(rows)
        if together:
            try:
                speeches = self._at_once(rows)
            except ValueError as error:
                for row in rows:
                    self.fail(row.line, f"{self._script}, line {row.line}: {error}")
                return
        shared_s = (time.process_time() - began) / len(rows)
        for row, speech in zip(rows, speeches, strict=True):
            began = time.process_time()
            try:
                duration_s = self._record(row) if speech is None else self._save(row, speech)
            except (ValueError, OSError) as error:
                self.fail(row.line, f"{self._script}, line {row.line}: {error}")
                continue
            self._note(row, duration_s, shared_s + time.process_time() - began)

    def fail(self, line: int, message: str) -> None:
        self.failed += 1
        logger.error("%s", message)
        self._manifest.add({"line": line, "error": message})

    def _at_once(self, rows: list[Row]) -> list[Speech]:
        """The speech of rows in one batch, filled up so that all batches have the same compiled shape."""
        filled = [*rows, *[rows[-1]] * (self._batch - len(rows))]
        speeches = self._tts.synthesize_batch(
            [self._pieces[row.line][0].text for row in filled],
            [self._voice(row) for row in filled],
            seeds=[self._seed(row) for row in filled],
            duration=self._duration(rows[0]),
            speed=self._speed(rows[0]),
            sampler=self._options.sampler,
            rows=len(filled),
        )
        return speeches[: len(rows)]

    def _save(self, row: Row, speech: Speech) -> float:
        level, silence = self._options.level, np.zeros(round(row.fields.pause * speech.sample_rate), np.float32)
        speech = dataclasses.replace(speech, samples=np.concatenate([speech.samples, silence]))
        path = self._folder / row.output
        speech.save(path, level.strategy, loudness_lufs=level.loudness_lufs, mp3_rate=level.mp3_rate)
        return speech.duration_s

    def _record(self, row: Row) -> float:
        options = self._options
        recorded = record_text(
            self._tts,
            self._pieces[row.line],
            self._voice(row),
            self._folder / row.output,
            options.level,
            pause_s=row.fields.pause,
            choose=options.choose,
            seed=self._seed(row),
            duration=self._duration(row),
            speed=self._speed(row),
            sampler=options.sampler,
            candidates=options.candidates,
        )
        return recorded.duration_s

    def _note(self, row: Row, duration_s: float, cpu_s: float) -> None:
        self.spoken += 1
        line = {
            "line": row.line,
            "output": str(row.output),
            "text": row.fields.text,
            "voice": row.fields.voice or (self._reference(row) and str(self._reference(row))),
            "seed": self._seed(row),
            "duration_s": round(duration_s, 3),
            "cpu_s": round(cpu_s, 3),
            "candidates": self._options.candidates,
            **self._options.score(),
            "bytes": (self._folder / row.output).stat().st_size,
            "key": self._key(row),
        }
        self._manifest.add(line)

    def _key(self, row: Row) -> str:
        """A hash of all that the file of a row depends on, except for what ranks candidates."""
        options, reference = self._options, self._reference(row)
        if reference is not None and reference not in self._hashes:
            self._hashes[reference] = sha256_file(reference)
        shared = options.sampler, options.level, options.candidates
        facts = {
            "text": row.fields.text,
            "pause": row.fields.pause,
            "voice": None if reference is None else self._hashes[reference],
            "seed": self._seed(row),
            "options": repr((self._duration(row), self._speed(row), *shared)),
            "model": self._tts.fingerprint,
            "version": __version__,
        }
        if options.sampler.student:
            facts["student"] = True
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _reference(self, row: Row) -> Path | None:
        return row.reference or self._options.reference

    def _voice(self, row: Row) -> np.ndarray | None:
        """The latents of a row's voice, encoded once for all rows that have it."""
        reference = self._reference(row)
        if reference is None:
            return None
        if reference not in self._voices:
            self._voices[reference] = self._tts.encode_reference(reference)
        return self._voices[reference]

    def _seed(self, row: Row) -> int:
        return self._options.seed if row.fields.seed is None else row.fields.seed

    def _duration(self, row: Row) -> Duration:
        return self._options.duration if row.fields.duration is None else row.fields.duration

    def _speed(self, row: Row) -> float:
        return self._options.speed if row.fields.speed is None else row.fields.speed
