"""Training a DACVAE with reconstruction losses: weight norm, AdamW, a constant rate with a cosine end, EMA.

Batches are a pure function of (seed, step), and the state file holds everything else, so a killed run goes on
exactly where its last save was. Clips live in memory as 16-bit samples (about 115 MB an hour at 16 kHz).
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from safetensors import safe_open
from safetensors.numpy import save_file

from echotts.codec.backbone import CodecConfig, decode_frames, encode_frames, init_params
from echotts.codec.layers import Params
from echotts.codec.losses import kl_loss, reconstruction_loss
from echotts.files import atomic_write
from echotts.seeds import random_key

log = logging.getLogger(__name__)

STATE_NAME = "state.safetensors"


def demo_codec() -> CodecConfig:
    """The small codec that comes with the package: 16 kHz, 25 latents of 64 channels a second, 3.0M parameters."""
    return CodecConfig(
        encoder_dim=16,
        encoder_rates=(4, 4, 5, 8),
        latent_dim=256,
        decoder_dim=256,
        decoder_rates=(8, 5, 4, 4),
        codebook_dim=64,
        sample_rate=16000,
    )


@dataclass(frozen=True, kw_only=True)
class CodecTraining:
    """One codec training. `frames` is the crop length in latent frames; the rate falls over the last `decay_share`.

    `decoder_only` leaves everything that makes latents as it is: shards and models made with the codec stay valid.
    """

    codec: CodecConfig = field(default_factory=demo_codec)
    steps: int = 10000
    batch_size: int = 4
    frames: int = 32
    learning_rate: float = 8e-4
    warmup_steps: int = 200
    decay_share: float = 0.5
    weight_decay: float = 1e-3
    clip_norm: float = 10.0
    kl_weight: float = 2e-4
    wave_weight: float = 10.0
    decoder_only: bool = False
    ema_decay: float = 0.999
    seed: int = 0
    save_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        if self.frames * self.codec.hop_length < 1024:
            raise ValueError(f"frames {self.frames} is under the longest spectrum's window of 1024 samples: raise it")


class TrainState(NamedTuple):
    """`weights` and `ema` are weight-normed trees: gain, direction and bias where the codec has kernel and bias."""

    step: Array
    weights: Params
    ema: Params
    optimizer: Any


def train_codec(
    training: CodecTraining,
    clips: Sequence[np.ndarray],
    run_dir: Path,
    report: Callable[[dict[str, float]], None] = lambda metrics: None,
    start: Params | None = None,
) -> Params:
    """Trains on mono clips (int16 or float32 at the codec's rate) and gives the folded EMA parameters.

    Begins with the parameters `start`, or random ones; resumes from `run_dir` if it holds a state. `report` gets one
    dict of numbers every `log_every` steps. Raises ValueError without clips, with another configuration than the saved
    one or without a start where only the decoder is trained, FloatingPointError when the loss is not finite.
    """
    if training.decoder_only and start is None:
        raise ValueError("decoder_only trains the decoder of a codec that is there: name it with --init_from")
    crops = Crops(clips, training)
    run_dir.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(training)
    state = _restore(run_dir, training, initial_state(training, optimizer, start))
    step_function = jax.jit(make_step(training, optimizer), donate_argnums=0)
    first, started = int(state.step), time.monotonic()
    for step in range(first, training.steps):
        state, metrics = step_function(state, crops.batch(step))
        done = step + 1
        if done % training.log_every == 0 or done == training.steps:
            row = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if not np.isfinite(row["loss/total"]):
                raise FloatingPointError(f"codec loss is {row['loss/total']} at step {done}: lower the learning rate")
            rate = (done - first) / (time.monotonic() - started)
            report({"step": done, **row, "time/steps_per_s": rate, "time/left_s": (training.steps - done) / rate})
        if done % training.save_every == 0 or done == training.steps:
            save_state(run_dir, training, state)
    params = fold(state.ema)
    # folding rounds: what is not trained comes from the start itself, bit by bit
    return _choose(training, params, start) if start is not None else params


def make_step(
    training: CodecTraining, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Float[Array, "b n"]], tuple[TrainState, dict[str, Array]]]:
    """One update as a pure function; the posterior's noise is a function of (seed, step)."""

    def loss_function(
        weights: Params, audio: Float[Array, "b n"], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        params = fold(weights)
        mean, std = encode_frames(params, training.codec, audio)
        if training.decoder_only:
            mean, std = jax.lax.stop_gradient((mean, std))
        latent = mean + std * jax.random.normal(key, mean.shape)
        output = decode_frames(params, training.codec, latent)
        loss, parts = reconstruction_loss(output, audio, training.codec.sample_rate, training.wave_weight)
        kl = kl_loss(mean, std)
        total = loss + training.kl_weight * kl
        return total, {"loss/total": total, "loss/kl": kl} | {f"loss/{name}": part for name, part in parts.items()}

    def step(state: TrainState, audio: Float[Array, "b n"]) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(random_key(training.seed), state.step)
        grads, metrics = jax.grad(loss_function, has_aux=True)(state.weights, audio, key)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.weights)
        weights: Any = _choose(training, optax.apply_updates(state.weights, updates), state.weights)
        decay = jnp.minimum(training.ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, weights)
        return TrainState(state.step + 1, weights, ema, optimizer_state), metrics | {
            "grad/norm": optax.tree.norm(grads)
        }

    return step


def make_optimizer(training: CodecTraining) -> optax.GradientTransformation:
    """AdamW (0.8, 0.99) with clipping; warm-up, constant, then cosine to zero over the last share of the steps."""
    decay_steps = max(1, int(training.steps * training.decay_share))
    constant_end = max(training.warmup_steps, training.steps - decay_steps)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, training.learning_rate, training.warmup_steps),
            optax.constant_schedule(training.learning_rate),
            optax.cosine_decay_schedule(training.learning_rate, decay_steps),
        ],
        [training.warmup_steps, constant_end],
    )
    return optax.chain(
        optax.clip_by_global_norm(training.clip_norm),
        optax.adamw(schedule, b1=0.8, b2=0.99, weight_decay=training.weight_decay),
    )


def initial_state(
    training: CodecTraining, optimizer: optax.GradientTransformation, start: Params | None = None
) -> TrainState:
    params = init_params(training.codec, random_key(training.seed)) if start is None else start
    weights = unfold(jax.tree.map(jnp.array, params))  # copies: steps donate their state, the caller keeps the start
    return TrainState(jnp.int32(0), weights, jax.tree.map(jnp.copy, weights), optimizer.init(weights))


def _choose(training: CodecTraining, trained: Any, before: Params) -> Params:
    """The trained tree, with the parts that this training leaves alone as they were before."""
    if not training.decoder_only:
        return trained
    bottleneck = before["bottleneck"] | {"out": trained["bottleneck"]["out"]}
    return before | {"bottleneck": bottleneck, "decoder": trained["decoder"]}


def unfold(params: Params) -> Params:
    """Kernels as gain and direction (weight norm, arXiv 1602.07868): per output channel, per input in `up`."""

    def visit(node: Any, name: str) -> Any:
        if isinstance(node, list):
            return [visit(child, name) for child in node]
        if not isinstance(node, dict):
            return node
        if "kernel" in node:
            direction = node["kernel"]
            return {"gain": _norm(direction, name), "direction": direction, "bias": node["bias"]}
        return {key: visit(child, key) for key, child in node.items()}

    return visit(params, "")


def fold(weights: Params) -> Params:
    """The inverse of `unfold`: kernel = gain * direction / norm, as the network uses it."""

    def visit(node: Any, name: str) -> Any:
        if isinstance(node, list):
            return [visit(child, name) for child in node]
        if not isinstance(node, dict):
            return node
        if "direction" in node:
            kernel = node["gain"] / _norm(node["direction"], name) * node["direction"]
            return {"kernel": kernel, "bias": node["bias"]}
        return {key: visit(child, key) for key, child in node.items()}

    return visit(weights, "")


def _norm(kernel: Float[Array, "k i o"], name: str) -> Float[Array, "..."]:
    axes = (0, 2) if name == "up" else (0, 1)
    return jnp.sqrt(jnp.sum(kernel**2, axes, keepdims=True))


class Crops:
    """Random crops of equal length; longer clips are drawn more often, shorter ones are padded with zeros."""

    def __init__(self, clips: Sequence[np.ndarray], training: CodecTraining) -> None:
        if not len(clips):
            raise ValueError("no clips to train the codec on: check the --data folder and its rejected files")
        self.clips = clips
        self.training = training
        self.samples = training.frames * training.codec.hop_length
        lengths = np.array([len(clip) for clip in clips], float)
        self.share = lengths / lengths.sum()

    def batch(self, step: int) -> Float[np.ndarray, "b n"]:
        """The crops of `step`: float32 in -1..1."""
        rng = np.random.default_rng([self.training.seed, step])
        rows = np.zeros((self.training.batch_size, self.samples), np.float32)
        for row, index in zip(rows, rng.choice(len(self.clips), len(rows), p=self.share), strict=True):
            clip = self.clips[index]
            start = rng.integers(0, max(1, len(clip) - self.samples + 1))
            piece = clip[start : start + self.samples]
            row[: len(piece)] = piece / 32768 if piece.dtype == np.int16 else piece
        return rows


def save_state(run_dir: Path, training: CodecTraining, state: TrainState) -> None:
    """The whole state in one file, under its name only when whole."""
    arrays = {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    with atomic_write(run_dir / STATE_NAME) as path:
        save_file(arrays, path, metadata={"training": json.dumps(asdict(training))})


def _restore(run_dir: Path, training: CodecTraining, fresh: TrainState) -> TrainState:
    path = run_dir / STATE_NAME
    if not path.exists():
        return fresh
    with safe_open(path, framework="numpy") as file:
        saved = json.loads(file.metadata()["training"])
        asked = json.loads(json.dumps(asdict(training)))
        differing = [name for name in asked if asked[name] != saved.get(name) and name not in RESUMABLE_CHANGES]
        if differing:
            changes = ", ".join(f"{name} {saved.get(name)} -> {asked[name]}" for name in differing)
            raise ValueError(f"{path}: saved with another configuration ({changes}): use a new run folder")
        state = jax.tree_util.tree_map_with_path(lambda p, _: jnp.asarray(file.get_tensor(_name(p))), fresh)
    log.info("resuming codec training from step %d of %s", int(state.step), path)
    return state


RESUMABLE_CHANGES = ("steps", "decay_share", "save_every", "log_every")


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)
