"""Speaks a list of texts with a teacher: clips in FLAC and a table that describes them.

Layout: `{output}/{voice}/{number of the text}.flac` and `{output}/metadata.jsonl`, one line per clip with audio, text,
speaker, language, teacher, voice, licence and duration_s, the input of `data prepare --source {output}`. Texts that a
teacher cannot speak are listed in `refused.jsonl`. An interrupted run resumes: clips in the table are skipped.
"""

import json
import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from echotts.audio import HEADROOM_PEAK, Samples, synthetic_tags
from echotts.data.teachers.teacher import Teacher, load_teacher
from echotts.files import atomic_write, read_text
from echotts.strict_json import load_rows

TABLE = "metadata.jsonl"
REFUSED = "refused.jsonl"
QUEUED_A_PROCESS = 4
MAX_PACE = 2.0

Progress = Callable[[str, int, int, int], None]  # stage, done, total, refused
Change = Callable[[Samples, int, np.random.Generator], Samples]  # samples, rate, random numbers of this clip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to speak a list. `per_text`: number of voices per text. `hours`: stop at this total duration.

    `change` is applied to each clip; other processes import it.
    """

    teacher: str
    voices: tuple[str, ...] = ()
    per_text: int = 1
    hours: float | None = None
    pace: tuple[float, float] = (1.0, 1.0)
    language: str = "en"
    change: Change | None = None
    seed: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if not 1.0 / MAX_PACE <= self.pace[0] <= self.pace[1] <= MAX_PACE:
            raise ValueError(
                f"pace {self.pace}: give two factors between {1 / MAX_PACE} and {MAX_PACE}, the smaller one first"
            )
        for name in ("per_text", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")

    def enough(self, hours: float) -> bool:
        return self.hours is not None and hours >= self.hours


@dataclass(frozen=True)
class Job:
    """One clip to make; `seed` determines its pace and augmentation."""

    audio: str
    text: str
    voice: str
    seed: tuple[int, int]


@dataclass
class Summary:
    """The contents of the output folder after a run."""

    clips: int = 0
    hours: float = 0.0
    refused: int = 0


def speak(texts: Sequence[str], output: Path, settings: Settings, progress: Progress = lambda *_: None) -> Summary:
    """Speaks `texts` into `output`; returns a summary of the folder.

    Raises ValueError for a voice that the teacher does not have, or a folder with a clip of the same name and another
    text; ModuleNotFoundError or FileNotFoundError if the teacher is not installed.
    """
    teacher = load_teacher(settings.teacher)
    for voice in settings.voices:
        teacher.check(voice)
    jobs = plan(texts, settings.voices or teacher.voices(), settings.per_text, settings.seed)
    output.mkdir(parents=True, exist_ok=True)
    rows = _table(output / TABLE, "audio", "text", "duration_s")
    refused = {row["audio"] for row in _table(output / REFUSED, "audio")}
    said = {row["audio"]: row["text"] for row in rows}
    for job in jobs:
        if said.get(job.audio, job.text) != job.text:
            raise ValueError(
                f"{output / job.audio} has the text {said[job.audio]!r}, the list {job.text!r}: choose another folder"
            )
    summary = Summary(len(rows), sum(row["duration_s"] for row in rows) / 3600, len(refused))
    todo = [job for job in jobs if job.audio not in said and job.audio not in refused]
    for row in _work(todo, output, settings, lambda: settings.enough(summary.hours)):
        if "reason" in row:
            summary.refused += 1
        else:
            summary.clips, summary.hours = summary.clips + 1, summary.hours + row["duration_s"] / 3600
            row["licence"] = teacher.licence(row["voice"])
        with (output / (REFUSED if "reason" in row else TABLE)).open("a", encoding="utf-8") as table:
            table.write(json.dumps(row, ensure_ascii=False) + "\n")
        progress(settings.teacher, summary.clips + summary.refused, len(jobs), summary.refused)
    return summary


def read_texts(path: Path) -> list[str]:
    """The non-empty lines of a text file. Raises FileNotFoundError, or ValueError if there are none or not UTF-8."""
    texts = [line.strip() for line in read_text(path).split("\n")]
    texts = [text for text in texts if text]
    if not texts:
        raise ValueError(f"{path}: contains no texts: give one sentence per line")
    return texts


def plan(texts: Sequence[str], voices: Sequence[str], per_text: int, seed: int) -> list[Job]:
    """All clips, in an order in which any prefix is a representative sample of the whole.

    Text i is spoken by voices i, i + 1, ... of the list, `per_text` of them.
    """
    if per_text > len(voices):
        raise ValueError(f"per_text {per_text} exceeds the {len(voices)} voices: a voice speaks a text only once")
    width = len(str(len(texts)))
    jobs = [
        Job(f"{folder_name(voice)}/{number:0{width}d}.flac", text, voice, (seed, number))
        for number, text in enumerate(texts)
        for voice in (voices[(number + turn) % len(voices)] for turn in range(per_text))
    ]
    return [jobs[place] for place in np.random.default_rng(seed).permutation(len(jobs))]


def folder_name(voice: str) -> str:
    """A voice's name as a folder and speaker name: jf_alpha:60+jm_kumo:40 becomes jf_alpha-60+jm_kumo-40."""
    return re.sub(r"[^\w+.-]", "-", voice)


def _work(
    jobs: Sequence[Job], output: Path, settings: Settings, enough: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Yields table rows as clips are made, by `settings.processes` processes that each load the teacher."""
    remaining = iter(jobs)
    pending: set[Future[dict[str, Any]]] = set()
    context = multiprocessing.get_context("spawn")  # espeak, ONNX and JAX do not survive a fork
    pool = ProcessPoolExecutor(settings.processes, context, _begin, (settings, output))
    try:
        while not enough():
            while len(pending) < QUEUED_A_PROCESS * settings.processes and (job := next(remaining, None)) is not None:
                pending.add(pool.submit(_make, job))
            if not pending:
                return
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_teacher: Teacher  # globals of a worker process, set by _begin
_settings: Settings
_output: Path


def _begin(settings: Settings, output: Path) -> None:
    global _teacher, _settings, _output
    _teacher, _settings, _output = load_teacher(settings.teacher), settings, output


def _make(job: Job) -> dict[str, Any]:
    """Speaks one clip and writes it; returns its row of the table, or a row with a reason for refusal."""
    random = np.random.default_rng(job.seed)
    try:
        samples, rate = _teacher.say(job.text, job.voice, float(random.uniform(*_settings.pace)))
    except ValueError as error:
        return {"audio": job.audio, "text": job.text, "voice": job.voice, "reason": str(error)}
    if _settings.change is not None:
        samples = _settings.change(samples, rate, random)
    peak = float(np.abs(samples).max())
    samples = samples * min(1.0, HEADROOM_PEAK / max(peak, 1e-9))
    with (
        atomic_write(_output / job.audio) as temporary,
        soundfile.SoundFile(temporary, "w", rate, 1, format="FLAC", subtype="PCM_16") as sound,
    ):
        for name, value in synthetic_tags(_settings.teacher).items():
            setattr(sound, name, value)
        sound.write(samples)
    return {
        "audio": job.audio,
        "text": job.text,
        "speaker": folder_name(job.voice),
        "language": _settings.language,
        "teacher": _settings.teacher,
        "voice": job.voice,
        "duration_s": round(len(samples) / rate, 3),
    }


def _table(path: Path, *needs: str) -> list[dict[str, Any]]:
    """The rows of a table; an incomplete last line, left by an interrupted run, is removed."""
    rows = load_rows(path, needs)
    if path.is_file():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    return rows
