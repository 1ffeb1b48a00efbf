"""A tiny configuration, batches and shards: every test of training compiles the same small model."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from echotts.config import (
    Bucket,
    Config,
    DataConfig,
    EncoderConfig,
    FlowConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)
from echotts.data.format.shards import Sample, ShardWriter
from echotts.data.stream.batch import Batch

CHANNELS = 8
ENCODER = EncoderConfig(width=16, depth=1, heads=2, mlp_width=32)
TINY = Config(
    preset="demo",
    model=ModelConfig(
        latent_channels=CHANNELS,
        width=32,
        depth=2,
        heads=2,
        mlp_width=64,
        text=ENCODER,
        speaker=ENCODER,
        timestep_width=16,
        adaln_rank=8,
        compute_dtype="float32",
    ),
    flow=FlowConfig(),
    data=DataConfig(batch_size=8, buckets=(Bucket(frames=16, tokens=12),), reference_frames=8, streams=8),
    optim=OptimConfig(steps=6, learning_rate=3e-3, warmup_share=0.2, ema_decay=0.9),
    run=RunConfig(log_every=1, save_every_steps=2, save_every_minutes=0.0, eval_every=0, sample_every=0),
)


@dataclasses.dataclass(frozen=True)
class Spoken:
    """The result of a fake speaker: anything with a save method."""

    speech: Any
    reference: Any = None
    heard: Any = None
    similarity: Any = None


def with_sections(config: Config, **sections: dict) -> Config:
    """The configuration with keys of its sections replaced: with_sections(TINY, optim={"steps": 3})."""
    changed = {name: dataclasses.replace(getattr(config, name), **keys) for name, keys in sections.items()}
    return dataclasses.replace(config, **changed)


def random_batch(config: Config = TINY, seed: int = 0, rows: int | None = None) -> Batch:
    """Rows of different lengths; the last one has no speaker."""
    rng = np.random.default_rng(seed)
    rows = rows or config.data.batch_size
    bucket, reference = config.data.buckets[0], config.data.reference_frames
    frames = rng.integers(2, bucket.frames + 1, (rows, 1))
    tokens = rng.integers(2, bucket.tokens + 1, (rows, 1))
    heard = rng.integers(1, reference + 1, (rows, 1))
    heard[-1] = 0
    text_mask = np.arange(bucket.tokens) < tokens
    speaker_mask = np.arange(reference) < heard
    speaker = rng.normal(size=(rows, reference, CHANNELS)) * speaker_mask[..., None]
    return Batch(
        latent=rng.normal(size=(rows, bucket.frames, CHANNELS)).astype(np.float32),
        latent_mask=np.arange(bucket.frames) < frames,
        text_ids=np.where(text_mask, rng.integers(1, 256, text_mask.shape), 0).astype(np.int32),
        text_mask=text_mask,
        speaker_latent=speaker.astype(np.float32),
        speaker_mask=speaker_mask,
    )


def write_shards(folder: Path, *, shards: int = 2, samples: int = 24, seed: int = 0, channels: int = CHANNELS) -> Path:
    """Shards whose latents follow their text: a letter is a direction, so there is something to learn."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(1).normal(size=(26, channels))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        with ShardWriter(folder / f"s-{number:03d}.tar", channels) as writer:
            for index in range(samples):
                letters = rng.integers(0, 4, rng.integers(2, 8))
                latent = np.repeat(directions[letters], 2, axis=0) + 0.1 * rng.normal(size=(2 * len(letters), channels))
                text = "".join(chr(ord("a") + letter) for letter in letters)
                reference = rng.normal(size=(rng.integers(2, 9), channels)) if index % 3 else None
                writer.write(Sample(key=f"k{number}-{index}", latent=latent, reference=reference, text=text))
    np.save(folder / "silence.npy", np.full((4, channels), 0.05, np.float32))
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="package")
def uninterrupted(shards, compile_once, tmp_path_factory) -> Path:
    """The run directory of TINY on the shards, from its first step to its last."""
    from echotts.training.loop import train

    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train(with_sections(TINY, data={"data": str(shards)}, run={"run_dir": str(folder)})).finished
    return folder


@pytest.fixture(scope="package", autouse=True)
def trace_once():
    """Each train() traces its own step and initial state: here runs of equal programs share them."""
    from echotts.training import run, start, state, step

    steps, abstract = _shared(run.make_train_step), _shared(state.abstract_state.__wrapped__)
    begin = _shared(lambda config, mesh, create=state.initial_state: jax.device_get(create(config, mesh)))

    def make_train_step(config, mesh, frozen=None):
        return step.TrainStep(steps(config, mesh).jitted, frozen or {})

    def initial_state(config, mesh):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(config, mesh))
        return jax.device_put(begin(config, mesh), shardings, may_alias=False)  # steps donate it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_train_step", make_train_step)
        patch.setattr(state, "initial_state", initial_state)
        for module in (start, state, step):
            patch.setattr(module, "abstract_state", abstract)
        yield


def _shared(make):
    """`make(config, mesh)`, called once for configurations that differ only in what no compiled program depends on."""
    made = {}

    def get(config, mesh):
        sizes = (config.data.batch_size, config.data.reference_frames)
        key = (config.model, config.flow, config.optim, config.tune, config.run.seed, sizes, mesh)
        if key not in made:
            made[key] = make(config, mesh)
        return made[key]

    return get


@pytest.fixture(scope="package", autouse=True)
def compile_once():
    """The same program is compiled once, also by processes that tests start, and without much optimising."""
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "quick"  # stays for the next run, as all others do
    wanted = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in wanted}
    _configure(wanted)
    yield folder
    _configure(before)


def _configure(options):
    for name, value in options.items():
        jax.config.update(name, value)
    reset_cache()
