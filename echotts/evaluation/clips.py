"""Clips whose words and voice are known: audio shards, as the built-in corpus has them."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echotts.audio import Samples, read_audio
from echotts.data.format.tars import TarFile
from echotts.evaluation.recogniser import DIGITS

RATE_HZ = 16000
MEMBER_LIMIT_BYTES = 64 << 20


@dataclass(frozen=True)
class Clip:
    """One recording. `samples` at RATE_HZ."""

    key: str
    text: str
    speaker: str
    samples: Samples

    @property
    def words(self) -> list[str]:
        return self.text.split()


def read_clips(folder: Path, split: str, count: int | None = None) -> list[Clip]:
    """The first `count` clips of a split: members {key}.<audio> and {key}.json of the shards dataset.json lists for it.

    Raises FileNotFoundError without a dataset.json, ValueError where the split is missing, a member is, or a text has
    words that are not digits.
    """
    index = folder / "dataset.json"
    if not index.is_file():
        raise FileNotFoundError(f"{index}: no such file: the meter reads a folder of audio shards with a dataset.json")
    shards = [
        folder / entry["name"] for entry in json.loads(index.read_text())["shards"] if entry.get("split") == split
    ]
    if not shards:
        raise ValueError(f"{index}: lists no shard of the split {split!r}")
    clips = []
    for shard in shards:
        for clip in _read_shard(shard):
            if len(clips) == count:
                return clips
            clips.append(clip)
    return clips


def _read_shard(path: Path) -> Iterator[Clip]:
    with TarFile(path) as tar:
        for fault in tar.faults:
            raise ValueError(f"{path}: {fault.cause} ({fault.detail})")
        for entry in tar.entries:
            sounds = sorted(set(entry.members) - {"json"})
            if entry.fault or len(sounds) != 1 or "json" not in entry.members:
                raise ValueError(
                    f"{path}/{entry.key}: is not one recording and one json: it has {sorted(entry.members)}"
                )
            about = json.loads(tar.read(entry, "json", MEMBER_LIMIT_BYTES))
            yield _clip(f"{path}/{entry.key}", entry.key, about, tar.read(entry, sounds[0], MEMBER_LIMIT_BYTES))


def _clip(name: str, key: str, about: dict[str, Any], recording: bytes) -> Clip:
    unknown = sorted(set(about["text"].split()) - set(DIGITS))
    if unknown:
        raise ValueError(f"{name}: the text has {unknown[0]!r}: the meter hears digits only ({', '.join(DIGITS)})")
    return Clip(key, about["text"], about["speaker"], read_audio(io.BytesIO(recording), RATE_HZ, name=name))
