"""Flow matching: timesteps, condition dropout, and the loss.

Time 0 is data and 1 is noise; the path is x_t = (1 - t) x0 + t n and the target velocity is n - x0
(docs/training.md; the recipe of LAION's README and of christophschuhmann/dacvae-echo).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from echotts.config import FlowConfig, LossName

LOSS_EPS = 1e-6  # published: keeps a batch without a valid frame finite
NO_TOKEN = -1e4  # score of a masked token
BETWEEN_TOKENS = -1.0  # log score of a frame at no token, arXiv 2108.10447

VelocityFn = Callable[[Array, Array, Array, Array, Array, Array], Any]


@runtime_checkable
class TrainingBatch(Protocol):
    """The part of a batch that the loss reads; a frozen dataclass of arrays (echotts.data.stream.batch.Batch)."""

    @property
    def latent(self) -> Any: ...  # (b, t, c) float32

    @property
    def latent_mask(self) -> Any: ...  # (b, t) bool; all False for a row that only pads the batch

    @property
    def text_ids(self) -> Any: ...  # (b, n) int32

    @property
    def text_mask(self) -> Any: ...  # (b, n) bool

    @property
    def speaker_latent(self) -> Any: ...  # (b, m, c) float32

    @property
    def speaker_mask(self) -> Any: ...  # (b, m) bool


SomeBatch = TypeVar("SomeBatch", bound=TrainingBatch)


def stratified_timesteps(key: Key[Array, ""], global_batch: int, config: FlowConfig) -> Float[Array, " b"]:
    """Logit-normal timesteps for the global batch, one row from each of its equal strata.

    The key must be the same on all processes; each process takes its own rows of the result.
    """
    offset_key, shift_key = jax.random.split(key)
    offset = jax.random.uniform(offset_key)
    rotation = jax.random.randint(shift_key, (), 0, global_batch)
    return timesteps_at(offset, rotation, global_batch, config.time_mean, config.time_std)


def timesteps_at(
    offset: Float[Array, ""], mod_offset: Int[Array, ""], global_batch: int, mean: float = 0.0, std: float = 1.0
) -> Float[Array, " b"]:
    """t_i = sigmoid(mean + std Phi^-1(q_i)) with q_i = ((i + mod_offset) mod b + offset) / b.

    `mod_offset` rotates the strata, so that a given row does not always see the same range of t.
    """
    stratum = (jnp.arange(global_batch) + mod_offset) % global_batch
    quantile = (stratum + offset.astype(jnp.float32)) / global_batch
    return jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(quantile))


def path_and_target(
    x0: Float[Array, "b t c"], noise: Float[Array, "b t c"], t: Float[Array, " b"]
) -> tuple[Float[Array, "b t c"], Float[Array, "b t c"]]:
    """(x_t, target velocity): x_t = (1 - t) x0 + t noise, target = noise - x0."""
    t = t[:, None, None]
    return (1 - t) * x0 + t * noise, noise - x0


def condition_dropout(key: Key[Array, ""], batch: SomeBatch, config: FlowConfig) -> SomeBatch:
    """Drops text and speaker of random rows, independently, to train the unconditional branches of guidance."""
    text_key, speaker_key = jax.random.split(key)
    rows = batch.text_mask.shape[:1]
    text_keep = jax.random.bernoulli(text_key, 1 - config.text_dropout, rows)
    return drop_conditions(batch, text_keep, jax.random.bernoulli(speaker_key, 1 - config.speaker_dropout, rows))


def drop_conditions(batch: SomeBatch, text_keep: Bool[Array, " b"], speaker_keep: Bool[Array, " b"]) -> SomeBatch:
    """A dropped text loses its mask (ids stay); a dropped speaker loses its mask and its latents."""
    return dataclasses.replace(
        batch,  # pyright: ignore[reportArgumentType] - a Protocol cannot be declared a dataclass
        text_mask=batch.text_mask & text_keep[:, None],
        speaker_mask=batch.speaker_mask & speaker_keep[:, None],
        speaker_latent=jnp.where(speaker_keep[:, None, None], batch.speaker_latent, 0),
    )


def flow_loss(
    velocity_fn: VelocityFn, batch: TrainingBatch, key: Key[Array, ""], config: FlowConfig, train: bool
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Loss of one batch at random times and noise; conditions are dropped only if `train`.

    All randomness depends on `key` and the row's index in the global batch. aux: see `velocity_loss`.
    """
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    t = stratified_timesteps(time_key, batch.latent.shape[0], config)
    noise = jax.random.normal(noise_key, batch.latent.shape)
    if train:
        batch = condition_dropout(dropout_key, batch, config)
    return velocity_loss(velocity_fn, batch, t, noise, config.loss)


def alignment_loss(
    scores: Float[Array, "b t n"], text_mask: Bool[Array, "b n"], latent_mask: Bool[Array, "b t"]
) -> Float[Array, " b"]:
    """-log of the probability that each row's frames pass through its tokens in order, nats per row.

    The forward-sum loss of arXiv 2108.10447 (One TTS Alignment To Rule Them All): connectionist temporal classification
    (CTC) whose labels are the positions of the text. A frame may also be at no token, with the log score -1. It is 0
    for rows without text and for those with more tokens than frames.
    """
    hidden = ~text_mask[:, None]
    chances = jax.nn.log_softmax(jnp.where(hidden, NO_TOKEN, scores), axis=-1)
    nowhere = jnp.full_like(chances[..., :1], BETWEEN_TOKENS)
    tokens = jnp.broadcast_to(jnp.arange(1, scores.shape[2] + 1), text_mask.shape)
    logits = jnp.concatenate([nowhere, jnp.where(hidden, NO_TOKEN, chances)], axis=-1)
    losses = optax.ctc_loss(logits, ~latent_mask * 1.0, tokens, ~text_mask * 1.0)
    length = text_mask.sum(axis=1)
    return jnp.where((length > 0) & (length <= latent_mask.sum(axis=1)), losses, 0.0)


def velocity_loss(
    velocity_fn: VelocityFn,
    batch: TrainingBatch,
    t: Float[Array, " b"],
    noise: Float[Array, "b t c"],
    loss: LossName,
    alignment: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss at given times and noise, plus `alignment` times the alignment loss, in nats per valid frame.

    "published": squared error summed over all frames of non-empty rows, including padding, per valid frame.
    "frame": mean squared error over valid frames. Rows without a valid frame do not count in either.

    aux: "t" (b,), "row_loss" (b,) mean squared error of each row over the frames that count, "kept" (b,) bool, and
    "weight" (): the loss of a batch split into equal parts is exactly sum(weight * loss) / sum(weight) over the parts.
    "flow" and "alignment" () are the two terms; with `alignment`, `velocity_fn` also returns scores
    (`BlockDiT.with_alignment`).
    """
    x_t, target = path_and_target(batch.latent.astype(jnp.float32), noise, t)
    result: Any = velocity_fn(x_t, t, batch.text_ids, batch.text_mask, batch.speaker_latent, batch.speaker_mask)
    velocity = result if alignment is None else result[0]
    total, aux = squared_error(velocity, target, batch.latent_mask, loss)
    if alignment is not None:
        rows = alignment_loss(result[1], batch.text_mask, batch.latent_mask)
        aux["alignment"] = jnp.mean(rows) / batch.latent_mask.shape[1] / aux["weight"]
        total = total + alignment * aux["alignment"]
    return total, aux | {"t": t}


def squared_error(
    velocity: Float[Array, "b t c"], target: Float[Array, "b t c"], latent_mask: Bool[Array, "b t"], loss: LossName
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss of velocities against their targets; aux as in `velocity_loss`, without "t"."""
    frame_error = jnp.mean(jnp.square(velocity.astype(jnp.float32) - target), axis=-1)
    valid = latent_mask.astype(jnp.float32)
    kept = latent_mask.any(axis=1)
    counted = jnp.broadcast_to(kept[:, None], valid.shape).astype(jnp.float32) if loss == "published" else valid
    weight = jnp.mean(valid) + LOSS_EPS
    row_loss = jnp.sum(frame_error * counted, axis=1) / jnp.maximum(jnp.sum(counted, axis=1), 1)
    total = jnp.mean(frame_error * counted) / weight
    return total, {"flow": total, "alignment": jnp.float32(0), "row_loss": row_loss, "kept": kept, "weight": weight}
