"""How well `data segment` finds and transcribes speech: `python -m benchmarks.segmenting --clips english/train`.

Joins known clips into one long recording, with silence, noise or music between them, and compares the result with the
ground truth: the share of the speech found, the error of the boundaries, and the word errors in the found clips beside
those of the recogniser on the clips themselves. Some clips are over music, noisy or clipped, and should be rejected.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile

from echotts.audio import Samples, read_audio, trim_silence
from echotts.data.teachers.rooms import music, noise
from echotts.evaluation.asr import Whisper, count_errors
from echotts.segment.pieces import find_pieces
from echotts.segment.quality import Limits
from echotts.segment.run import Settings, segment

RATE_HZ = 24000
SPOILED = ("over music", "noisy", "clipped")
SPOILED_SHARE = 0.15
NEAR_S = 0.2


def glue(folder: Path, seconds: float, random: np.random.Generator) -> tuple[Samples, list[dict]]:
    """A recording of this many seconds, and its clips: start_s, end_s, text, kind."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows.sort(key=lambda row: (row["speaker"], row["audio"]))
    rows = [pair for pair in zip(rows[::2], rows[1::2], strict=False) if pair[0]["speaker"] == pair[1]["speaker"]]
    random.shuffle(rows)
    pieces: list[np.ndarray] = []
    places, at = [], 0
    while at < seconds * RATE_HZ:
        pair = rows[len(places) % len(rows)]
        first, second = (trim_silence(read_audio(folder / row["audio"], RATE_HZ), RATE_HZ) for row in pair)
        clip = np.concatenate([first, np.zeros(RATE_HZ // 4, np.float32), second])
        rms = float(np.sqrt(np.mean(np.square(clip))))
        gap = round(random.uniform(0.8, 3.0) * RATE_HZ)
        between = random.choice(["silence", "noise", "music"])
        sound = np.zeros(gap)
        if between != "silence":
            sound = music(gap, RATE_HZ, random) if between == "music" else noise(gap, random)
            sound *= 0.3 * rms / np.sqrt(np.mean(np.square(sound)))
            sound *= np.minimum(1.0, np.minimum(np.arange(gap), np.arange(gap)[::-1]) / (0.3 * RATE_HZ))
        kind = str(random.choice(SPOILED)) if random.random() < SPOILED_SHARE else "good"
        if kind in SPOILED[:2]:
            over = music(len(clip), RATE_HZ, random) if kind == "over music" else random.standard_normal(len(clip))
            clip = clip + over * rms / np.sqrt(np.mean(np.square(over))) * (0.3 if kind == "over music" else 0.5)
        if kind == "clipped":
            clip = np.clip(clip, -2 * rms, 2 * rms)
        pieces += [sound, clip]
        place = {"start_s": (at + gap) / RATE_HZ, "end_s": (at + gap + len(clip)) / RATE_HZ}
        places.append(place | {"text": f"{pair[0]['text']} {pair[1]['text']}", "kind": kind, "samples": clip})
        at += gap + len(clip)
    whole = np.concatenate(pieces) + 1e-4 * random.standard_normal(at)
    return (whole / max(1.0, np.abs(whole).max())).astype(np.float32), places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder with metadata.jsonl (`data speak`)")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--asr", default="base")
    parser.add_argument("--only_find", action="store_true", help="skip the recogniser")
    arguments = parser.parse_args()
    samples, places = glue(arguments.clips, 60 * arguments.minutes, np.random.default_rng(0))
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        talk = Path(folder) / "talk.flac"
        soundfile.write(talk, samples, RATE_HZ)
        spans = [(piece.start_s, piece.end_s) for piece in find_pieces(talk, Limits().max_s)]
        print(f"found {len(spans)} pieces for {len(places)} clips in {time.process_time() - began:.0f} CPU seconds")
        compare(spans, places)
        if not arguments.only_find:
            score_clips(Path(folder), places, Whisper(arguments.asr))


def compare(spans: list[tuple[float, float]], places: list[dict]) -> None:
    """Speech found, and boundaries of clips that were found as one piece."""
    grid = np.zeros((2, round(100 * (max(places[-1]["end_s"], spans[-1][1]) + 1))), bool)
    for row, edges in enumerate(([(p["start_s"], p["end_s"]) for p in places if p["kind"] == "good"], spans)):
        for start_s, end_s in edges:
            grid[row, round(100 * start_s) : round(100 * end_s)] = True
    off = []
    for place in places:
        touching = [span for span in spans if span[0] < place["end_s"] and span[1] > place["start_s"]]
        if place["kind"] == "good" and touching:
            off += [abs(touching[0][0] - place["start_s"]), abs(touching[-1][1] - place["end_s"])]
    found = (grid[0] & grid[1]).sum() / grid[0].sum()
    print(f"speech found: {found:.1%}; boundaries within {NEAR_S} s: {np.mean(np.array(off) <= NEAR_S):.1%}, ", end="")
    print(f"median {np.median(off):.3f} s, 95 % within {np.percentile(off, 95):.3f} s")


def score_clips(folder: Path, places: list[dict], recogniser: Whisper) -> None:
    """Result of `data segment`: rejections by kind of clip, errors in its texts beside the recogniser's own."""
    summary = segment(folder / "talk.flac", folder / "clips", recogniser, Settings())
    print(f"{summary.clips} clips, {summary.seconds / 60:.1f} min; rejected {dict(summary.rejected)}")
    counts: dict[str, Counter[str]] = {}
    wrong = np.zeros((2, 2), int)
    for name in ("metadata.jsonl", "rejected.jsonl"):
        path = folder / "clips" / name
        for row in map(json.loads, path.read_text().splitlines() if path.is_file() else []):
            inside = [p for p in places if row["start_s"] < p["end_s"] - 0.3 and row["end_s"] > p["start_s"] + 0.3]
            for place in inside:
                counts.setdefault(place["kind"], Counter())[row.get("cause", "kept")] += 1
            if len(inside) == 1 and "cause" not in row:
                said = recogniser.normalise(inside[0]["text"])
                alone = recogniser.recognise(inside[0]["samples"].astype(np.float32), RATE_HZ)
                for number, text in enumerate((row["text"], alone)):
                    errors = count_errors(said, recogniser.normalise(text))
                    wrong[number] += errors.words_wrong, errors.words
    for kind, causes in counts.items():
        print(f"{kind}: {dict(causes)}")
    print(f"word errors in the clips found {wrong[0, 0] / wrong[0, 1]:.1%}, in the clips themselves ", end="")
    print(f"{wrong[1, 0] / wrong[1, 1]:.1%} ({wrong[0, 1]} words)")


if __name__ == "__main__":
    main()
