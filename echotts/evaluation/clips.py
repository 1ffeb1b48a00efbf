"""Clips with known texts and speakers, and the evaluation tasks made of them: a text to speak in a given voice.

| data | layout |
|---|---|
| audio shards | a folder with dataset.json and the splits heldout, reference and train (the built-in corpus) |
| a table | .csv, .tsv or .jsonl, or a folder with metadata.jsonl (`data speak`): audio, text, speaker; the first clips are spoken, each in the voice of another clip of its speaker |
| seed-tts-eval | .lst: `key|reference text|reference recording|text`, optionally `|recording of the text`; paths are relative to the list's folder |
"""  # noqa: E501

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from echotts.audio import Samples, read_audio
from echotts.data.format.tars import TarFile
from echotts.data.prepare.recordings import RecordingReader, list_recordings
from echotts.files import read_text
from echotts.strict_json import load_json

RATE_HZ = 16000
MEMBER_LIMIT_BYTES = 64 << 20
INDEX_BYTES = 8 << 20
ENROLMENT_CLIPS = 200  # about 40 per speaker: with 8, only 81 % of the recordings match their own speaker
TABLES = (".csv", ".tsv", ".jsonl")
LIST = ".lst"


class DatasetIndex(TypedDict):
    """The part of a folder's dataset.json that is read."""

    shards: list[dict[str, Any]]


class ClipFacts(TypedDict):
    """The part of a clip's JSON that is read."""

    text: str
    speaker: str


@dataclass(frozen=True)
class Clip:
    """One recording. `samples` are at RATE_HZ."""

    key: str
    text: str
    speaker: str
    samples: Samples


@dataclass(frozen=True)
class Task:
    """A text to be spoken in the voice of `reference`.

    `recording` gives the upper bound: a human recording of the text or, if there is none, the reference itself.
    """

    key: str
    text: str
    reference: Clip
    recording: Clip

    @property
    def speaker(self) -> str:
        return self.reference.speaker

    @property
    def recorded(self) -> bool:
        return self.recording is not self.reference


def read_tasks(data: Path, count: int) -> tuple[list[Task], list[Clip]]:
    """The first `count` tasks of `data`, and the clips from which its voices are enrolled.

    Raises FileNotFoundError, or ValueError naming the place, if `data` has none of the layouts.
    """
    if data.suffix == LIST:
        tasks = _read_list(data, count)
        return tasks, [task.reference for task in tasks]
    if data.suffix in TABLES or (data.is_dir() and (data / "metadata.jsonl").is_file()):
        return _read_table(data, count)
    clips = read_clips(data, "heldout", count)
    references = choose_references(clips, read_clips(data, "reference"))
    return _tasks(clips, references), read_clips(data, "train", ENROLMENT_CLIPS)


def choose_references(clips: Sequence[Clip], pool: Sequence[Clip]) -> list[Clip]:
    """Another clip of the same speaker from `pool` for each clip, round-robin; ValueError if the pool has none."""
    by_speaker: dict[str, list[Clip]] = {}
    for clip in pool:
        by_speaker.setdefault(clip.speaker, []).append(clip)
    turns: dict[str, int] = {}
    chosen = []
    for clip in clips:
        others = [other for other in by_speaker.get(clip.speaker, []) if other.key != clip.key]
        if not others:
            raise ValueError(f"{clip.key}: no reference clip of the speaker {clip.speaker!r}")
        turn = turns[clip.speaker] = turns.get(clip.speaker, -1) + 1
        chosen.append(others[turn % len(others)])
    return chosen


def read_clips(folder: Path, split: str, count: int | None = None) -> list[Clip]:
    """The first `count` clips of a split, from members {key}.<audio> and {key}.json of its shards in dataset.json.

    Raises FileNotFoundError without a dataset.json, ValueError if the split or a member is missing.
    """
    index = folder / "dataset.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"{index}: no such file: --data takes a folder of audio shards with a dataset.json, a table "
            f"({', '.join(TABLES)}) or a list ({LIST})"
        )
    shards = [
        folder / entry["name"]
        for entry in load_json(index.read_bytes(), index, DatasetIndex, max_bytes=INDEX_BYTES)["shards"]
        if entry.get("split") == split
    ]
    if not shards:
        raise ValueError(f"{index}: lists no shards of the split {split!r}")
    clips = []
    for shard in shards:
        for clip in _read_shard(shard):
            if len(clips) == count:
                return clips
            clips.append(clip)
    return clips


def _tasks(clips: Sequence[Clip], references: Sequence[Clip]) -> list[Task]:
    return [Task(clip.key, clip.text, other, clip) for clip, other in zip(clips, references, strict=True)]


def _read_table(data: Path, count: int) -> tuple[list[Task], list[Clip]]:
    """Tasks from the first clips of a table; the clips after them serve to enrol the voices."""
    found = list_recordings(str(data), speaker="one speaker")[: count + ENROLMENT_CLIPS]
    with RecordingReader() as reader:
        clips = [
            Clip(one.key, one.meta["text"], one.meta["speaker"], reader.read(one, RATE_HZ))
            for one in found
            if one.checked_meta()
        ]
    wanted = clips[: min(count, max(1, len(clips) - 1))]
    pool = clips[len(wanted) :]
    known = {clip.speaker for clip in pool}
    pool += [clip for clip in wanted if clip.speaker not in known]
    return _tasks(wanted, choose_references(wanted, pool)), pool


def _read_list(path: Path, count: int) -> list[Task]:
    tasks = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip() or len(tasks) == count:
            continue
        fields = line.split("|")
        if len(fields) not in (4, 5):
            raise ValueError(
                f"{path}, line {number}: {len(fields)} fields; expected key|reference text|reference recording|text, "
                "optionally followed by |recording of the text"
            )
        key, said, prompt, text, *recorded = (field.strip() for field in fields)
        reference = Clip(key, said, prompt, read_audio(path.parent / prompt, RATE_HZ))
        recording = Clip(key, text, prompt, read_audio(path.parent / recorded[0], RATE_HZ)) if recorded else reference
        tasks.append(Task(key, text, reference, recording))
    if not tasks:
        raise ValueError(f"{path}: is empty; expected lines key|reference text|reference recording|text")
    return tasks


def _read_shard(path: Path) -> Iterator[Clip]:
    with TarFile(path) as tar:
        for fault in tar.faults:
            raise ValueError(f"{path}: {fault.cause} ({fault.detail})")
        for entry in tar.entries:
            sounds = sorted(set(entry.members) - {"json"})
            if entry.fault or len(sounds) != 1 or "json" not in entry.members:
                raise ValueError(
                    f"{path}/{entry.key}: expected one recording and one json, found {sorted(entry.members)}"
                )
            about = load_json(tar.read(entry, "json", MEMBER_LIMIT_BYTES), f"{path}/{entry.key}.json", ClipFacts)
            recording = io.BytesIO(tar.read(entry, sounds[0], MEMBER_LIMIT_BYTES))
            samples = read_audio(recording, RATE_HZ, name=f"{path}/{entry.key}")
            yield Clip(entry.key, about["text"], about["speaker"], samples)
