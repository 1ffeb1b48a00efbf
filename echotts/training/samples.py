"""Speech samples of a running training: fixed sentences, seeds and voices, one folder per step."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from echotts.checkpoint.export import Weights
from echotts.config import HELDOUT_VOICES, RunConfig
from echotts.training.heldout import Heldout

Voice = Path | np.ndarray
"""A recording, or the (m, c) latent of one."""


@runtime_checkable
class Sound(Protocol):
    """What can be written to a file (echotts.synthesis.Speech)."""

    def save(self, path: Path) -> object: ...


@runtime_checkable
class Heard(Protocol):
    """What a recogniser made of a sentence (echotts.evaluation.ear.Heard)."""

    @property
    def text(self) -> str: ...

    @property
    def words_wrong(self) -> int: ...

    @property
    def words(self) -> int: ...

    @property
    def characters_wrong(self) -> int: ...

    @property
    def characters(self) -> int: ...


@runtime_checkable
class Spoken(Protocol):
    """What a speaker returns: a sentence, the voice it was given and what was heard, if any (evaluation.samples)."""

    @property
    def speech(self) -> Sound: ...

    @property
    def reference(self) -> Sound | None: ...

    @property
    def heard(self) -> Heard | None: ...


Speaker = Callable[[Weights, str, int, Voice | None], Spoken]
"""(weights, sentence, seed, voice) -> speech. Training does not know synthesis: it is given one."""


def choose_voices(run: RunConfig, heldout: Heldout | None) -> list[Voice]:
    """The voices of the speech samples, for the process that speaks; none where none are asked for."""
    if run.sample_references == (HELDOUT_VOICES,):
        return [*heldout.references(len(run.sentences))] if heldout else []
    return [Path(path).expanduser() for path in run.sample_references]


def write_samples(
    run_dir: Path, step: int, sentences: Sequence[str], speak: Speaker, weights: Weights, voices: Sequence[Voice] = ()
) -> tuple[Path, dict[str, float]]:
    """Speaks each sentence, seeded by its place, into `samples/step_*/NN_words.wav`; the folder appears when whole.

    The voices take turns. Each lies beside its sentences as `reference_NN.wav`; `sentences.json` says which is whose,
    and what was heard. Returns the folder and, where a recogniser listened, its metrics.
    """
    folder = run_dir / "samples" / f"step_{step:08d}"
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    described: dict[str, Any] = {}
    heard: list[Heard] = []
    for number, sentence in enumerate(sentences):
        name = f"{number:02d}_{_slug(sentence)}.wav"
        turn = number % max(len(voices), 1)
        spoken = speak(weights, sentence, number, voices[turn] if voices else None)
        spoken.speech.save(unfinished / name)
        described[name] = sentence
        if spoken.reference is not None:
            reference = f"reference_{turn:02d}.wav"
            if not (unfinished / reference).exists():
                spoken.reference.save(unfinished / reference)
            described[name] = {"text": sentence, "reference": reference}
        if spoken.heard is not None:
            about = described[name] if isinstance(described[name], dict) else {"text": sentence}
            described[name] = {**about, "heard": spoken.heard.text}
            heard.append(spoken.heard)
    (unfinished / "sentences.json").write_text(json.dumps(described, ensure_ascii=False, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder, _error_rates(heard)


def _error_rates(heard: Sequence[Heard]) -> dict[str, float]:
    """The metrics of what was heard; none where nothing listened."""
    if not heard:
        return {}
    return {
        "speech/word_error_rate": sum(one.words_wrong for one in heard) / max(1, sum(one.words for one in heard)),
        "speech/character_error_rate": sum(one.characters_wrong for one in heard)
        / max(1, sum(one.characters for one in heard)),
    }


def _slug(sentence: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", sentence.lower()).strip("-")
    return words[:40] or "sentence"
