"""Speech samples of a running training: fixed sentences, fixed seeds, one folder per step."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from echotts.training.export import Weights


@runtime_checkable
class Speech(Protocol):
    """What a speaker returns (echotts.synthesis.Speech)."""

    def save(self, path: Path) -> object: ...


Speaker = Callable[[Weights, str, int], Speech]
"""(weights, sentence, seed) -> speech. Training does not know synthesis; the command line hands one in."""


def write_samples(run_dir: Path, step: int, sentences: tuple[str, ...], speak: Speaker, weights: Weights) -> Path:
    """Speaks each sentence, seeded by its place, into `samples/step_*/NN_words.wav`; the folder appears when whole."""
    folder = run_dir / "samples" / f"step_{step:08d}"
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    spoken = {}
    for number, sentence in enumerate(sentences):
        name = f"{number:02d}_{_slug(sentence)}.wav"
        speak(weights, sentence, number).save(unfinished / name)
        spoken[name] = sentence
    (unfinished / "sentences.json").write_text(json.dumps(spoken, ensure_ascii=False, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder


def _slug(sentence: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", sentence.lower()).strip("-")
    return words[:40] or "sentence"
