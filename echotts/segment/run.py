"""Cuts raw recordings into clips: voice activity detection, acoustic checks, recognition, text checks, writing.

Layout: `{output}/{speaker}/{recording}_{number}.flac` and `{output}/metadata.jsonl` (audio, text, speaker, language,
source, start_s, end_s, snr_db, confidence), which `data prepare` reads; `rejected.jsonl` has the rejected pieces with
the cause. Both grow by whole recordings, whose names are in `done.txt`: an interrupted run continues after them.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile

from echotts.audio.reading import AUDIO_SUFFIXES
from echotts.evaluation.asr import Whisper
from echotts.evaluation.voices import VoiceEncoder
from echotts.files import atomic_write, plain, read_lines
from echotts.segment.pieces import Piece, find_pieces
from echotts.segment.quality import Limits, fault, snr_db
from echotts.strict_json import load_rows

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")
TABLE, REJECTED, DONE = "metadata.jsonl", "rejected.jsonl", "done.txt"
LEAST_MATCHED = 0.6  # minimum share of a clip's recognised words found in the text
LEAST_CONFIDENCE = -0.8  # mean log probability of Whisper's tokens
LETTERS_A_SECOND = (3.0, 30.0)
SAME_SPEAKER = 0.75  # minimum cosine similarity to a cluster's mean

Progress = Callable[[str, int, int, int], None]  # message, recordings done, total, clips rejected


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`speakers`: one per recording, or clusters of its voices. `text`: the transcript, if known."""

    language: str = "en"
    text: str | None = None
    speakers: Literal["file", "cluster"] = "file"
    limits: Limits = field(default_factory=Limits)


@dataclass
class Summary:
    """The contents of the output folder. `seconds` is the total duration of the clips."""

    clips: int = 0
    seconds: float = 0.0
    rejected: Counter[str] = field(default_factory=Counter)
    silent: list[str] = field(default_factory=list)  # recordings without speech


def segment(
    source: Path, output: Path, recogniser: Whisper, settings: Settings, progress: Progress = lambda *_: None
) -> Summary:
    """Segments every recording in `source` (a file or folder) into `output`; returns a summary of the output folder.

    Raises FileNotFoundError or ValueError if the source has no recordings or one cannot be read.
    """
    files = list_files(source)
    output.mkdir(parents=True, exist_ok=True)
    done = set(read_lines(output / DONE))
    for name in (TABLE, REJECTED):
        _keep(output / name, done)
    encoder = VoiceEncoder()
    for number, file in enumerate(files):
        name = plain(file.name if source.is_file() else file.relative_to(source).as_posix())
        if name not in done:
            rows, rejected = _one(file, name, output, recogniser, encoder, settings)
            _append(output / TABLE, rows)
            _append(output / REJECTED, rejected)
            with (output / DONE).open("a", encoding="utf-8") as table:
                table.write(f"{name}\n")
        summary = _summary(output)
        progress(f"{summary.seconds / 60:.1f} min", number + 1, len(files), summary.rejected.total())
    summary = _summary(output)
    heard = {row["source"] for file in (TABLE, REJECTED) for row in load_rows(output / file, ["source"])}
    summary.silent = sorted(set(read_lines(output / DONE)) - heard)
    return summary


def list_files(source: Path) -> list[Path]:
    """The recordings of a source, sorted by name."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such recording or folder")
    known = (*AUDIO_SUFFIXES, *VIDEO_SUFFIXES)
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in known)
    if not files:
        raise ValueError(f"{source}: contains no recordings ({', '.join(known)})")
    return files


def _one(
    file: Path, name: str, output: Path, recogniser: Whisper, encoder: VoiceEncoder, settings: Settings
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Processes one recording: writes its clips and returns the rows of clips and of rejected pieces."""
    rows, rejected, kept = [], [], []
    for piece in find_pieces(file, settings.limits.max_s):
        row: dict[str, Any] = {"source": name, "start_s": round(piece.start_s, 3), "end_s": round(piece.end_s, 3)}
        found = fault(piece, settings.limits, encoder)
        if found is None:
            heard = recogniser.transcribe(piece.samples, piece.rate)
            row |= {"text": heard.text, "confidence": round(heard.confidence, 3) if heard.text else None}
            found = _unheard(heard.text, heard.confidence, heard.language, piece, settings.language)
        if found is not None:
            rejected.append(row | dict(zip(("cause", "detail"), found, strict=True)))
            continue
        row |= {"language": settings.language, "snr_db": round(snr_db(piece), 1)}
        rows.append(row)
        kept.append(piece)
    if settings.text is not None:
        aligned = align(settings.text, [row["text"] for row in rows])
        for row, text in zip(rows, aligned, strict=True):
            row |= (
                {"text": text} if text else {"cause": "not_in_text", "detail": "too few of its words are in the text"}
            )
        rejected += [row for row in rows if "cause" in row]
        kept = [piece for piece, row in zip(kept, rows, strict=True) if "cause" not in row]
        rows = [row for row in rows if "cause" not in row]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name).with_suffix("").as_posix()).strip("-") or "recording"
    for number, (row, piece, speaker) in enumerate(
        zip(rows, kept, name_speakers(kept, stem, encoder, settings.speakers), strict=True)
    ):
        row |= {"audio": f"{speaker}/{stem}_{number:05d}.flac", "speaker": speaker}
        with atomic_write(output / row["audio"]) as temporary, temporary.open("wb") as opened:
            soundfile.write(opened, piece.samples, piece.rate, format="FLAC", subtype="PCM_16")
    return rows, rejected


def _unheard(text: str, confidence: float, spoken: str, piece: Piece, language: str) -> tuple[str, str] | None:
    """(cause, detail) if a transcript must be rejected, else None."""
    pace = len(text) / (piece.end_s - piece.start_s)
    if not re.search(r"\w", text):
        return "no_words", "no words were recognised"
    if spoken != language:
        return "other_language", f"{spoken}, {language} is required"
    if confidence < LEAST_CONFIDENCE:
        return "unclear", f"mean log probability {confidence:.2f}: two voices at once, mumbling or noise"
    if not LETTERS_A_SECOND[0] <= pace <= LETTERS_A_SECOND[1]:
        return "unclear", f"{pace:.1f} characters per second"
    return None


def name_speakers(pieces: Sequence[Piece], stem: str, encoder: VoiceEncoder, speakers: str) -> list[str]:
    """The speaker of each piece: the recording's own name, plus the number of its voice cluster if clustering."""
    if speakers == "file" or not pieces:
        return [stem] * len(pieces)
    sums: list[np.ndarray] = []
    names = []
    for voice in encoder.embed([(piece.samples, piece.rate) for piece in pieces]):
        likeness = [float(voice @ total) / np.linalg.norm(total) for total in sums]
        place = int(np.argmax(likeness)) if likeness and max(likeness) >= SAME_SPEAKER else len(sums)
        if place == len(sums):
            sums.append(np.zeros_like(voice))
        sums[place] = sums[place] + voice
        names.append(f"{stem}_{place + 1}")
    return names


def _append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as table:
        table.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _keep(path: Path, done: set[str]) -> None:
    """Removes rows of unfinished recordings: an earlier run may have been interrupted between writing two files."""
    if not path.is_file():
        return
    rows = [row for row in load_rows(path, ["source"]) if row["source"] in done]
    with atomic_write(path) as temporary:
        _append(temporary, rows)


def _summary(output: Path) -> Summary:
    rows = load_rows(output / TABLE, ["start_s", "end_s"])
    causes = Counter(row["cause"] for row in load_rows(output / REJECTED, ["cause"]))
    return Summary(len(rows), sum((row["end_s"] - row["start_s"] for row in rows), 0.0), causes)


def align(text: str, heard: Sequence[str]) -> list[str | None]:
    """For each clip, in order, the part of `text` spoken in it; None if too few of its words are in the text.

    Words are compared without case and punctuation. Misrecognised words at the edges of a clip are replaced by the
    words of the text at that position, unless another clip has them.
    """
    written = text.split()
    words = [re.findall(r"\S+", clip) for clip in heard]
    spoken = [_plain(word) for clip in words for word in clip]
    places: dict[int, int] = {}  # index of a recognised word -> its index in the text
    for start, other, size in SequenceMatcher(
        None, list(map(_plain, written)), spoken, autojunk=False
    ).get_matching_blocks():
        places.update({other + i: start + i for i in range(size)})
    spans = []
    first = 0
    for clip in words:
        found = [(number, places[first + number]) for number in range(len(clip)) if first + number in places]
        first += len(clip)
        fits = found and len(found) >= LEAST_MATCHED * len(clip)
        spans.append((found[0][1] - found[0][0], found[-1][1] + len(clip) - found[-1][0]) if fits else None)
    known = [span for span in spans if span is not None]
    aligned: list[str | None] = []
    for span in spans:
        if span is None:
            aligned.append(None)
            continue
        before = max((other[1] for other in known if other[0] < span[0]), default=0)
        aligned.append(" ".join(written[max(0, span[0], before) : span[1]]))
    return aligned


def _plain(word: str) -> str:
    return re.sub(r"[^\w']", "", word.lower())
