"""One codec training step as a pure function of state and batch: the discriminators' update, then the codec's.

Weights are weight-normed trees (weight_norm.py). A step is rejected, changing nothing but the step number, if a loss or
gradient is not finite or the reconstruction error exceeds the guard's limit (checkpoint/guard.py).
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from echotts.codec.backbone import decode_frames, encode_features, encode_frames, init_params
from echotts.codec.layers import Params
from echotts.codec.quantizer import quantize_for_training
from echotts.codec.training import losses
from echotts.codec.training.config import CodecOptim, CodecTraining
from echotts.codec.training.discriminators import discriminate, init_discriminators
from echotts.codec.training.weight_norm import fold, unfold
from echotts.config import RunConfig
from echotts.seeds import random_key

Metrics = dict[str, Array]

WATERMARK = "watermark"  # not trained


class CodecState(NamedTuple):
    """`params` and `opt_state` have entries "codec" and, if adversarial, "discriminators"; `ema` is the codec's."""

    step: Array
    params: Params
    ema: Params
    opt_state: Any

    def arrays(self) -> dict[str, Any]:
        """The contents of a checkpoint, without the step."""
        return {"params": self.params, "ema": self.ema, "opt_state": self.opt_state}


Step = Callable[[CodecState, Float[Array, "b n"], Float[Any, ""]], tuple[CodecState, Metrics]]


def make_step(training: CodecTraining, *, adversarial: bool) -> Step:
    """A function (state, batch, error limit) -> (state, metrics); `adversarial`: discriminators are trained and used.

    Noise and quantizer dropout depend only on (seed, step). Metrics are scalars: the losses by name, "error" (the
    weighted reconstruction loss), "grad_norm", "discriminator_grad_norm", "learning_rate", "finite" and "good".
    """
    optimizers = make_optimizers(training)
    weights_of = training.loss

    def step(state: CodecState, audio: Float[Array, "b n"], limit: Float[Any, ""]) -> tuple[CodecState, Metrics]:
        key = jax.random.fold_in(random_key(training.run.seed), state.step)
        params, opt_state = dict(state.params), dict(state.opt_state)
        rate = learning_rate(training.optim, state.step, training.steps)
        metrics: Metrics = {}

        (output, terms), back = jax.vjp(
            lambda weights: round_trip(fold(weights), training, audio, key), params["codec"]
        )
        if adversarial:
            fake = jax.lax.stop_gradient(output)

            def discriminators_lose(weights: Params) -> Array:
                folded = fold(weights)
                real_maps = discriminate(folded, training.discriminators, audio)
                return losses.discriminator_loss(real_maps, discriminate(folded, training.discriminators, fake))

            loss, grads = jax.value_and_grad(discriminators_lose)(params["discriminators"])
            metrics |= {"discriminator": loss, "discriminator_grad_norm": optax.tree.norm(grads)}
            params["discriminators"], opt_state["discriminators"] = _updated(
                optimizers["discriminators"], grads, opt_state["discriminators"], params["discriminators"], rate
            )

        discriminators = fold(params["discriminators"]) if adversarial else None
        (total, parts), towards = jax.value_and_grad(codec_loss, (0, 1), has_aux=True)(
            output, terms, training, audio, discriminators
        )
        (grads,) = back(towards)
        metrics |= parts | {"total": total, "grad_norm": optax.tree.norm(grads), "learning_rate": rate}
        trained, opt_state["codec"] = _updated(optimizers["codec"], grads, opt_state["codec"], params["codec"], rate)
        params["codec"] = trained_parts(training, trained, params["codec"])
        decay = jnp.minimum(training.optim.ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params["codec"])
        ema = trained_parts(training, ema, state.ema)

        error = weights_of.mel * parts["mel"] + weights_of.stft * parts["stft"] + weights_of.wave * parts["wave"]
        norms = [value for name, value in metrics.items() if name.endswith("grad_norm")]
        finite = jnp.isfinite(total) & jnp.all(jnp.isfinite(jnp.stack(norms)))
        good = finite & (error <= limit)
        kept = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, ema, opt_state),
            (state.params, state.ema, state.opt_state),
        )
        return CodecState(state.step + 1, *kept), metrics | {"error": error, "finite": finite, "good": good}

    return step


def codec_loss(
    output: Float[Array, "b m"],
    terms: Metrics,
    training: CodecTraining,
    audio: Float[Array, "b n"],
    discriminators: Params | None,
) -> tuple[Float[Array, ""], Metrics]:
    """The codec's loss for the result of `round_trip`, and its unweighted terms; `discriminators` are folded."""
    loss, rate = training.loss, training.codec.sample_rate
    target = audio[:, : output.shape[1]]
    zero = jnp.zeros(())
    terms = terms | {
        "mel": losses.mel_loss(output, target, rate, loss.mel_scales, loss.floor) if loss.mel else zero,
        "stft": losses.stft_loss(output, target, loss.stft_windows, loss.floor) if loss.stft else zero,
        "wave": losses.wave_loss(output, target),
    }
    if discriminators is not None:
        fake = discriminate(discriminators, training.discriminators, output)
        real = jax.lax.stop_gradient(discriminate(discriminators, training.discriminators, target))
        terms |= {"feature": losses.feature_loss(real, fake), "adversarial": losses.adversarial_loss(fake)}
    return sum((getattr(loss, name) * term for name, term in terms.items()), zero), terms


def round_trip(
    params: Params, training: CodecTraining, audio: Float[Array, "b n"], key: PRNGKeyArray
) -> tuple[Float[Array, "b m"], Metrics]:
    """Passes audio through a codec of folded parameters in training mode; returns the bottleneck's losses as well.

    DACVAE decodes a posterior sample; its loss is "kl". DAC uses straight-through quantization; its losses are
    "commitment" and "codebook", and m may be a few samples less than n.
    """
    config, loss = training.codec, training.loss
    if config.quantized:
        features = encode_features(params, config, audio)
        quantized = quantize_for_training(params, features, key, loss.quantizer_dropout)
        terms = {"commitment": quantized.commitment_loss, "codebook": quantized.codebook_loss}
        latent = quantized.embeddings
        if training.decoder_only:
            latent, terms = jax.lax.stop_gradient((latent, terms))
        return decode_frames(params, config, latent), terms
    mean, std = encode_frames(params, config, audio)
    if training.decoder_only:
        mean, std = jax.lax.stop_gradient((mean, std))
    latent = mean + std * jax.random.normal(key, mean.shape)
    return decode_frames(params, config, latent), {"kl": losses.kl_loss(mean, std, loss.free_bits)}


def without_run(training: CodecTraining) -> CodecTraining:
    """The part of the configuration that compiled functions depend on: `run` is reset except for the seed."""
    return replace(training, run=RunConfig(seed=training.run.seed))


@functools.cache
def compiled_step(training: CodecTraining, adversarial: bool) -> Step:
    """The compiled `make_step`; the state is donated."""
    return jax.jit(make_step(training, adversarial=adversarial), donate_argnums=0)


@functools.cache
def compiled_loss(training: CodecTraining) -> Any:
    """(weights, batch) -> (loss, terms) without discriminators and with fixed noise."""

    def measure(weights: Params, batch: Array) -> tuple[Array, Metrics]:
        output, terms = round_trip(fold(weights), training, batch, jax.random.key(0))
        return codec_loss(output, terms, training, batch, None)

    return jax.jit(measure)


@functools.cache
def compiled_round_trip(training: CodecTraining) -> Any:
    """(weights, batch, key) -> decoded batch."""
    return jax.jit(lambda weights, batch, key: round_trip(fold(weights), training, batch, key)[0])


def initial_state(training: CodecTraining, start: Params | None = None) -> CodecState:
    """The state before the first step: `start` (folded, copied) or a random codec, and random discriminators."""
    codec_key, judge_key = jax.random.split(random_key(training.run.seed))
    folded = init_params(training.codec, codec_key) if start is None else start
    own = {name: part for name, part in folded.items() if name != WATERMARK}
    params = {"codec": unfold(jax.tree.map(jnp.array, own))}  # copied, because steps donate their state
    if training.loss.uses_discriminators:
        params["discriminators"] = unfold(init_discriminators(training.discriminators, judge_key))
    optimizers = make_optimizers(training)
    return CodecState(
        step=jnp.int32(0),
        params=params,
        ema=jax.tree.map(jnp.copy, params["codec"]),
        opt_state={name: optimizers[name].init(weights) for name, weights in params.items()},
    )


def exported(training: CodecTraining, ema: Params, start: Params | None) -> Params:
    """Folded EMA weights. Folding rounds, so untrained parts are taken from `start`, bitwise identical."""
    params = fold(ema)
    if start is None:
        return params
    return {name: part for name, part in start.items() if name == WATERMARK} | trained_parts(training, params, start)


def trained_parts(training: CodecTraining, trained: Any, before: Params) -> Params:
    """The trained tree, with the parts that this training freezes taken from `before`."""
    if not training.decoder_only:
        return trained
    bottleneck = before["bottleneck"]
    if not training.codec.quantized:
        bottleneck = bottleneck | {"out": trained["bottleneck"]["out"]}
    return before | {"bottleneck": bottleneck, "decoder": trained["decoder"]}


def make_optimizers(training: CodecTraining) -> dict[str, optax.GradientTransformation]:
    """AdamW with clipping but without learning rate, for the codec and for the discriminators."""
    optim = training.optim

    def make(clip_norm: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(clip_norm),
            optax.scale_by_adam(b1=optim.b1, b2=optim.b2),
            optax.add_decayed_weights(optim.weight_decay),
        )

    return {"codec": make(optim.clip_norm), "discriminators": make(optim.discriminator_clip_norm)}


def learning_rate(optim: CodecOptim, step: Array, steps: int) -> Float[Array, ""]:
    """Warm-up, exponential decay, and a cosine to zero over the last `decay_share` of the steps."""
    position = step.astype(jnp.float32)
    warm = jnp.minimum(1.0, (position + 1) / max(optim.warmup_steps, 1))
    rate = optim.learning_rate * warm * jnp.exp(position * jnp.log(optim.decay))
    tail = steps * optim.decay_share
    if tail < 1:
        return rate
    past = jnp.clip((position - (steps - tail)) / tail, 0.0, 1.0)
    return rate * 0.5 * (1 + jnp.cos(jnp.pi * past))


def _updated(
    optimizer: optax.GradientTransformation, grads: Params, opt_state: Any, weights: Params, rate: Array
) -> tuple[Any, Any]:
    updates, opt_state = optimizer.update(grads, opt_state, weights)
    return jax.tree.map(lambda weight, update: weight - rate * update, weights, updates), opt_state
