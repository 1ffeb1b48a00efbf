"""Defaults for adapting a model to minutes of speech (`echotts train --tune`); docs/training.md has the reasons."""

from dataclasses import replace
from typing import Any

from echotts.checkpoint.facts import Facts
from echotts.config import (
    HELDOUT_VOICES,
    Bucket,
    Config,
    FlowConfig,
    ModelConfig,
    OptimConfig,
    TuneConfig,
    TuneName,
)
from echotts.latents import LatentScale

STEPS, EVAL_EVERY, PATIENCE = 1000, 50, 6
ROWS = 8  # one GPU has memory for them, and a hundred clips are a dozen steps
DURATION_ROWS, DURATION_RATE = 32, 3e-3  # a small network from nothing; of the model, only its encoders run
DISTIL_STEPS, DISTIL_RANK = 4000, 32  # it learns another flow, of all texts and voices
VOICE_RATE = 0.02  # latents have a standard deviation of about 1


def tuning(config: Config, method: TuneName, base: str, model: ModelConfig, facts: Facts) -> dict[str, Any]:
    """The sections of a configuration that adapts `base`, of these sizes and facts; `config` is the nearest preset.

    ValueError if it is distilled, but has a student already.
    """
    if method == "distil" and facts.student is not None:
        raise ValueError(f"{base}: has a student already: distil the model that it was made from")
    computes = config.model
    model = replace(model, compute_dtype=computes.compute_dtype, attention=computes.attention, remat=computes.remat)
    scale = LatentScale.from_json(facts.latent_scale, model.latent_channels).name
    rows = DURATION_ROWS if method == "duration" else ROWS
    english = {"tokenizer": "english"} if facts.tokenizer and facts.tokenizer["kind"] == "english" else {}
    few = {} if method == "distil" else {"batch_size": rows, "streams": ROWS, "interleave": 1}
    data = replace(config.data, latent_scale=scale, **english, **few)
    if limits := facts.buckets:
        longest = Bucket(frames=limits.frames, tokens=limits.tokens)
        buckets = data.buckets if data.buckets[-1] == longest else (longest,)
        data = replace(data, buckets=buckets, reference_frames=limits.reference_frames)
    usual = config.optim.learning_rate
    rate = {"full": usual / 10, "inversion": VOICE_RATE, "duration": DURATION_RATE}.get(method, usual)
    schedule = {"steps": STEPS, "learning_rate": rate, "warmup_share": 0.1, "decay_share": 1.0}
    optim = replace(config.optim, method="adamw", ema_decay=0.98, **schedule)
    flow = replace(config.flow, alignment=0.0)  # the base follows the text
    if method == "inversion":  # the voice is heard in every row, and not decayed towards zero
        optim, flow = replace(optim, weight_decay=0.0), replace(flow, text_dropout=0.0, speaker_dropout=0.0)
    if method == "duration":  # nothing has no duration
        flow = replace(flow, text_dropout=0.0)
    run = replace(
        config.run,
        init_from=base,
        eval_every=EVAL_EVERY,
        eval_batches=8,
        patience=PATIENCE,
        save_every_steps=0,
        keep_last=1,
        sample_every=2 * EVAL_EVERY,
        sample_references=(HELDOUT_VOICES,),
    )
    if method == "duration":  # errors of a good predictor are small and vary; the model's speech does not change
        run = replace(run, spike_factor=0.0, sample_every=0)
    tune = TuneConfig(method=method)
    sections = {"model": model, "flow": flow, "data": data, "optim": optim, "tune": tune, "run": run}
    return sections if method != "distil" else sections | _distilling(config, base, flow, optim)


def _distilling(config: Config, base: str, flow: FlowConfig, optim: OptimConfig) -> dict[str, Any]:
    """Sections for a student, which needs the texts and voices of a training from nothing, and a part of its steps."""
    return {
        "flow": replace(flow, text_dropout=0.0),  # a student always has a text
        "optim": replace(optim, steps=DISTIL_STEPS, warmup_share=0.02, ema_decay=0.99),
        "tune": TuneConfig(method="distil", rank=DISTIL_RANK),
        "run": replace(config.run, init_from=base, spike_factor=0.0, eval_batches=2),  # errors vary with the lengths
    }
