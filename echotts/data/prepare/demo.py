"""The built-in corpus: spoken digit strings in five synthetic voices, stored as audio shards.

espeak-ng's output differs between machines, so the recordings are kept under assets/digits with their hashes;
`build_corpus` created them. A member is `{key}.opus` (16 kHz, mono) beside `{key}.json` with text, speaker, language
and duration_s. No string of two or more digits occurs in two splits; the ten single digits are in train and heldout.
"""

import gzip
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import soundfile

from echotts.audio import Samples, resample
from echotts.data.teachers import load_teacher
from echotts.files import ASSETS, atomic_write, sha256_file, write_json

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOICES = {"us": "en-us", "f2": "en-us+f2", "m1": "en-us+m1", "klatt2": "en-us+klatt2", "f5": "en-us+f5"}
SAMPLE_RATE = 16000
SHARD_SAMPLES = 400
SHORTEST_S = 0.6  # padded with silence: a digit takes 0.3 s, and `data prepare` rejects clips under 0.5 s
PACES = (0.8, 0.9, 1.0, 1.1, 1.2)  # paces of single digits in train, since there are only ten of them
HELD_OUT_PAIRS = 20
OPUS_COMPRESSION = 0.96  # about 20 kbit/s: makes no difference to the recogniser, and keeps the corpus under 10 MB


Row = tuple[str, str, float]  # text, voice, pace


@dataclass(frozen=True)
class Split:
    """A split with its number of clips of three to seven digits; every voice speaks the same number of them."""

    name: str
    samples: int


SPLITS = (Split("train", 2300), Split("heldout", 100), Split("reference", 40))


def corpus_path() -> Path:
    """The folder of the corpus in the package."""
    return ASSETS / "digits"


def build_corpus(output: Path, seed: int = 0) -> dict[str, int]:
    """Synthesises every split to audio shards in `output`; returns the number of samples per split.

    Raises ModuleNotFoundError without espeakng-loader (extra teachers).
    """
    teacher = load_teacher("espeak")
    strings = _digit_strings(np.random.default_rng(seed))
    short = _short_rows(np.random.default_rng((seed, 1)))
    output.mkdir(parents=True, exist_ok=True)
    shards, counts = [], {}
    for split in SPLITS:
        rows = [(next(strings), list(VOICES)[i % len(VOICES)], 1.0) for i in range(split.samples)]
        count = 0
        for number, chosen in enumerate([*_chunks(rows), *_chunks(short.get(split.name, []))]):
            path = output / f"{split.name}-{number:03d}.tar.gz"
            members = (
                _member(f"{split.name}_{i:05d}", text, voice, *teacher.say(text, VOICES[voice], pace))
                for i, (text, voice, pace) in enumerate(chosen, count)
            )
            _write_shard(path, members)
            shards.append(_index_entry(path, split.name, len(chosen)))
            count += len(chosen)
        counts[split.name] = count
    info = {"kind": "audio", "sample_rate": SAMPLE_RATE, "voices": list(VOICES), "shards": shards}
    write_json(output / "dataset.json", info)
    return counts


def _chunks(rows: list[Row]) -> list[list[Row]]:
    return [rows[first : first + SHARD_SAMPLES] for first in range(0, len(rows), SHARD_SAMPLES)]


def _write_shard(path: Path, members: Iterable[dict[str, str | bytes]]) -> None:
    """Writes a gzipped tar, a third of the size of a plain one for so many small members."""
    # Imported here: webdataset imports torch if it is installed, which readers of the corpus do not need.
    from webdataset.writer import TarWriter

    with (
        atomic_write(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed,
        TarWriter(cast(BinaryIO, packed), encoder=False, mtime=0) as tar,
    ):
        for member in members:
            tar.write(member)


def _member(key: str, text: str, voice: str, said: Samples, rate: int) -> dict[str, str | bytes]:
    audio = resample(said, rate, SAMPLE_RATE)
    audio = np.pad(audio, (0, max(0, round(SHORTEST_S * SAMPLE_RATE) - len(audio))))
    encoded = io.BytesIO()
    soundfile.write(encoded, audio, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION)
    meta = {"text": text, "speaker": voice, "language": "en", "duration_s": round(len(audio) / SAMPLE_RATE, 4)}
    return {"__key__": key, "opus": encoded.getvalue(), "json": json.dumps(meta).encode()}


def _index_entry(path: Path, split: str, samples: int) -> dict[str, str | int]:
    return {
        "name": path.name,
        "split": split,
        "samples": samples,
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }


def _digit_strings(rng: np.random.Generator) -> Iterator[str]:
    """Distinct strings of three to seven digits, spelled out, with evenly distributed lengths."""
    seen: set[str] = set()
    while True:
        for length in rng.permutation(np.arange(3, 8)):
            text = " ".join(DIGITS[d] for d in rng.integers(0, 10, length))
            if text not in seen:
                seen.add(text)
                yield text


def _short_rows(rng: np.random.Generator) -> dict[str, list[Row]]:
    """Texts of one and two digits by split, shuffled; each is spoken in every voice, held-out ones in two."""
    pairs = [f"{DIGITS[i // 10]} {DIGITS[i % 10]}" for i in rng.permutation(100)]
    voices = list(VOICES)
    train = [(digit, voice, pace) for digit in DIGITS for voice in voices for pace in PACES]
    train += [(pair, voice, 1.0) for pair in pairs[HELD_OUT_PAIRS:] for voice in voices]
    heldout = [(text, voices[i % len(voices)], 1.0) for i, text in enumerate((*DIGITS, *pairs[:HELD_OUT_PAIRS]))]
    heldout += [(text, voices[(i + 1) % len(voices)], 1.0) for i, text in enumerate(pairs[:HELD_OUT_PAIRS])]
    return {
        "train": [train[i] for i in rng.permutation(len(train))],
        "heldout": [heldout[i] for i in rng.permutation(len(heldout))],
    }
