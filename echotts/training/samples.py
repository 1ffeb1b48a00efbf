"""Evaluation during training: losses on held-out data, and speech samples.

Both are comparable between steps: the same batches, times and noise; the same sentences, seeds and voices.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from echotts.checkpoint.weights import Weights
from echotts.config import HELDOUT_VOICES, Config, RunConfig
from echotts.data.stream.batch import Batch
from echotts.latents import UNSCALED, LatentScale
from echotts.model import Params
from echotts.rundir.metrics import TIMESTEP_BUCKETS, timestep_bucket_names
from echotts.training.feed import to_devices
from echotts.training.inputs import HELDOUT_SEED
from echotts.training.step import make_measure_step

Voice = Path | np.ndarray
"""A path to a recording, or its (m, c) latent."""


Speaker = Callable[[Weights, str, int, Voice | None], Any]
"""(weights, sentence, seed, voice) -> evaluation.samples.Spoken. Passed in: training does not depend on synthesis."""


class Heldout:
    """Held-out evaluation of one run. `read` returns this process's rows of the batches; it is called once."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        read: Callable[[], list[Batch]],
        scale: LatentScale = UNSCALED,
        frozen: Params | None = None,
    ):
        """`scale` is the latent scale of the batches; `frozen` are weights that are used but not trained."""
        self._scale = scale
        self._frozen = frozen or {}
        self._measure = make_measure_step(config, mesh)
        self._mesh = mesh
        self._batches = read()

    def references(self, most: int) -> list[np.ndarray]:
        """Up to `most` reference latents (m, c) from this process's rows, as codec latents."""
        rows = [row for batch in self._batches for row in zip(batch.speaker_latent, batch.speaker_mask, strict=True)]
        voices = [np.asarray(latent)[np.asarray(mask)] for latent, mask in rows if np.any(mask)]
        return [self._scale.restore(voice) for voice in voices[:most]]

    def losses(self, params: Params) -> dict[str, float]:
        """The loss over all batches, how much the texts reduce it, and the mean squared error in each timestep bucket.

        Buckets without rows are omitted.
        """
        seen, loss = self._measured(params, self._batches)
        figures = {"heldout/loss": loss}
        if "t" not in seen[0]:  # of durations
            return figures
        if len(self._batches[0].latent) > 1:
            figures["heldout/text_gain"] = (
                self._measured(params, [_texts_of_others(own) for own in self._batches])[1] - loss
            )
        t, row_loss, kept = (np.concatenate([aux[name] for aux in seen]) for name in ("t", "row_loss", "kept"))
        bucket = np.minimum((t * TIMESTEP_BUCKETS).astype(int), TIMESTEP_BUCKETS - 1)
        for index, name in enumerate(timestep_bucket_names()):
            rows = kept & (bucket == index)
            if rows.any():
                figures[name] = float(row_loss[rows].mean())
        return figures

    def _measured(self, params: Params, batches: Sequence[Batch]) -> tuple[list[dict[str, Any]], float]:
        """What `make_measure_step` gives for each batch, and the loss over all of them."""
        key = jax.random.key(HELDOUT_SEED)
        seen: list[dict[str, Any]] = []
        for number, rows in enumerate(batches):
            batch = to_devices(rows, self._mesh)
            seen.append(jax.device_get(self._measure(params, self._frozen, batch, jax.random.fold_in(key, number))))
        weights, losses = np.array([[aux["weight"], aux["loss"]] for aux in seen]).T
        return seen, float(np.sum(weights * losses) / np.sum(weights))


def _texts_of_others(batch: Batch) -> Batch:
    """Each row with the text of the one before it."""
    ids, mask = (np.roll(part, 1, axis=0) for part in (batch.text_ids, batch.text_mask))
    return dataclasses.replace(batch, text_ids=ids, text_mask=mask)


def choose_voices(run: RunConfig, heldout: Heldout | None) -> list[Voice]:
    """The voices of the speech samples, for the process that synthesises; empty if none are configured."""
    if run.sample_references == (HELDOUT_VOICES,):
        return [*heldout.references(len(run.sentences))] if heldout else []
    return [Path(path).expanduser() for path in run.sample_references]


def write_samples(
    run_dir: Path, step: int, sentences: Sequence[str], speak: Speaker, weights: Weights, voices: Sequence[Voice] = ()
) -> tuple[Path, dict[str, float]]:
    """Speaks each sentence, seeded by its index, to `samples/step_*/NN_words.wav`; the folder appears when complete.

    Voices are used in turn and stored beside their sentences as `reference_NN.wav`; `sentences.json` maps files to
    texts, references and transcripts. Returns the folder and the metrics of recogniser and voice encoder.
    """
    folder = run_dir / "samples" / f"step_{step:08d}"
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    described: dict[str, Any] = {}
    heard: list[Any] = []  # evaluation.asr.Heard
    similar: list[float] = []
    for number, sentence in enumerate(sentences):
        words = re.sub(r"[^a-z0-9]+", "-", sentence.lower()).strip("-")[:40]
        name = f"{number:02d}_{words or 'sentence'}.wav"
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
        if spoken.similarity is not None:
            similar.append(spoken.similarity)
    (unfinished / "sentences.json").write_text(json.dumps(described, ensure_ascii=False, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    figures = _error_rates(heard)
    return folder, figures | ({"speech/voice_similarity": sum(similar) / len(similar)} if similar else {})


def _error_rates(heard: Sequence[Any]) -> dict[str, float]:
    """Error rates of the transcripts; empty without a recogniser."""
    if not heard:
        return {}
    return {
        "speech/word_error_rate": sum(one.words_wrong for one in heard) / max(1, sum(one.words for one in heard)),
        "speech/character_error_rate": sum(one.characters_wrong for one in heard)
        / max(1, sum(one.characters for one in heard)),
    }
