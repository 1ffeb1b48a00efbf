"""Windowed encoding and decoding of whole signals, batches of unequal lengths, and signals that arrive in pieces."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from echotts.codec.backbone import abstract_params, decode_frames, encode_features, encode_frames
from echotts.codec.chunking import Carry, Past, Pieces, Stream, Window, plan
from echotts.codec.config import CodecConfig
from echotts.codec.layers import Params
from echotts.codec.quantizer import embed, quantize
from echotts.codec.watermark import WatermarkStream, block_length

EncoderOutputs = tuple[np.ndarray, np.ndarray]
"""DACVAE: posterior mean and standard deviation (b, t, c). DAC: embeddings (b, t, d) and codes (b, q, t)."""


def powers_of_two(largest: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `largest`: window widths that cover any length with few windows."""
    return tuple(1 << n for n in range(largest.bit_length()))


class EncoderStream:
    """Encodes audio as it arrives; latents come out as early as the receptive field allows and equal a single pass.

    `push` takes (b, n) at the codec's rate, any n. `push` and `finish` return `EncoderOutputs`.
    """

    def __init__(
        self,
        params: Params,
        config: CodecConfig,
        batch: int,
        widths: Sequence[int],
        n_quantizers: int | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        hop = config.hop_length
        carry, delay = plan(encode_features, config, (batch, max(widths) * hop))

        def step(audio: Any, carry: Carry, before: Any, left: Any) -> tuple[tuple[Array, ...], Carry]:
            return _encode_window(params, config, audio, carry, before, left, n_quantizers)

        empty = np.zeros((batch, 0, config.latent_channels), np.float32)
        no_codes = np.zeros((batch, 0, n_quantizers or config.n_codebooks), np.int32)
        self._stream = Stream(
            step,
            carry,
            widths=widths,
            inputs=hop,
            outputs=1,
            delay=delay,
            output_length=lambda frames: frames,
            empty=(empty, no_codes if config.quantized else empty),
            lengths=lengths,
        )
        self._config = config
        self._tail = np.zeros((batch, 0), np.float32)  # the last samples, from which the last frame may be filled
        self._samples = 0

    def push(self, audio: Float[np.ndarray, "b n"]) -> EncoderOutputs:
        self._samples += audio.shape[1]
        last = audio[:, -self._config.hop_length :]
        self._tail = np.concatenate([self._tail, last], axis=1)[:, -self._config.hop_length :]
        return self._outputs(self._stream.push(audio))

    def finish(self) -> EncoderOutputs:
        """The remaining outputs, after filling the last frame (see `fill`)."""
        missing = -self._samples % self._config.hop_length
        first = self._stream.push(fill(self._tail, missing, reflect=not self._config.quantized))
        rest = self._stream.finish()
        return self._outputs(tuple(np.concatenate(parts, axis=1) for parts in zip(first, rest, strict=True)))

    def _outputs(self, pieces: Pieces) -> EncoderOutputs:
        return pieces[0], pieces[1].swapaxes(1, 2) if self._config.quantized else pieces[1]


class DecoderStream:
    """Decodes latents as they arrive; audio comes out as early as the receptive field allows and equals a single pass.

    `push` takes latents (b, t, c) or DAC codes (b, q, t), any t, and returns the samples (b, n) that are determined so
    far: for DACVAE at 48 kHz, all but the last 0.287 s. `finish` returns the rest. With a `message` (b, bits) the audio
    is watermarked in whole blocks of 320 samples; the watermark's state carries over between calls.
    """

    def __init__(
        self,
        params: Params,
        config: CodecConfig,
        batch: int,
        widths: Sequence[int],
        message: Int[np.ndarray, "b bits"] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        carry, delay = plan(decode_frames, config, (batch, max(widths), config.latent_channels))

        def step(latent: Any, carry: Carry, before: Any, left: Any) -> tuple[tuple[Array, ...], Carry]:
            if latent.dtype.kind in "iu":
                latent = _embedded(params, latent)
            return _decode_window(params, config, latent, carry, before, left)

        hop = config.hop_length
        self._stream = Stream(
            step,
            carry,
            widths=widths,
            inputs=1,
            outputs=hop,
            delay=delay,
            output_length=config.output_samples,
            empty=(np.zeros((batch, 0), np.float32),),
            lengths=lengths,
        )
        self._mark = None
        if message is not None:
            blocks = -(-max(widths) * hop // block_length(params["watermark"]))
            mark_widths = (blocks,) if len(widths) == 1 else powers_of_two(blocks)
            self._mark = WatermarkStream(params["watermark"], message, mark_widths)

    def push(self, latent: Float[np.ndarray, "b t c"] | Integer[np.ndarray, "b q t"]) -> Float[np.ndarray, "b n"]:
        if latent.dtype.kind in "iu":
            latent = latent.swapaxes(1, 2).astype(np.int32)
        (clean,) = self._stream.push(latent)
        return clean if self._mark is None else self._mark.push(clean)

    def finish(self) -> Float[np.ndarray, "b n"]:
        (clean,) = self._stream.finish()
        if self._mark is None:
            return clean
        return np.concatenate([self._mark.push(clean), self._mark.finish()], axis=1)


def encode_windows(
    params: Params,
    config: CodecConfig,
    audio: Float[np.ndarray, "b n"],
    frames: int,
    n_quantizers: int | None = None,
    lengths: Sequence[int] | None = None,
) -> Iterator[EncoderOutputs]:
    """Latents of audio of any length, `frames` at a time, as a sequence of pieces; ceil(n / hop) frames in total.

    `lengths` gives the length of each row in samples: a row's latents are those of encoding it alone, then zeros.
    """
    hop = config.hop_length
    rows = None
    if lengths is not None:
        audio, rows = _filled_rows(audio, lengths, config), [-(-length // hop) for length in lengths]
    stream = EncoderStream(params, config, len(audio), (frames,), n_quantizers, rows)
    ended = 0
    for piece in _pushed(stream, audio, frames * hop):
        began, ended = ended, ended + piece[0].shape[1]
        yield piece if rows is None else _silenced(piece, [max(0, length - began) for length in rows], config)


def decode_blocks(
    params: Params,
    config: CodecConfig,
    latent: Float[np.ndarray, "b t c"] | Integer[np.ndarray, "b q t"],
    frames: int,
    message: Int[np.ndarray, "b bits"] | None = None,
    lengths: Sequence[int] | None = None,
) -> Iterator[Float[np.ndarray, "b n"]]:
    """Audio of latents or codes, yielded window by window as it is computed, `frames` at a time."""
    stream = DecoderStream(params, config, len(latent), (frames,), message, lengths)
    if latent.shape[-1 if latent.dtype.kind in "iu" else 1]:
        yield from _pushed(stream, latent, frames)


def decode_windows(
    params: Params,
    config: CodecConfig,
    latent: Float[np.ndarray, "b t c"] | Integer[np.ndarray, "b q t"],
    frames: int,
    message: Int[np.ndarray, "b bits"] | None = None,
    lengths: Sequence[int] | None = None,
) -> Float[np.ndarray, "b n"]:
    """Audio of latents or codes of any length, `frames` at a time; n = config.output_samples(t).

    `lengths` gives the length of each row in frames: a row's audio is that of decoding it alone, then zeros.
    """
    total = latent.shape[-1] if latent.dtype.kind in "iu" else latent.shape[1]
    audio = np.zeros((len(latent), config.output_samples(total)), np.float32)
    ended = 0
    for piece in decode_blocks(params, config, latent, frames, message, lengths):
        began, ended = ended, ended + piece.shape[1]
        audio[:, began:ended] = piece
    for row, length in enumerate(lengths or []):
        audio[row, config.output_samples(length) :] = 0
    return audio


def fill(end: Float[np.ndarray, "b n"], missing: int, reflect: bool) -> Float[np.ndarray, "b m"]:
    """The samples that fill up the last frame of audio, given its end: zeros for DAC, a reflection for DACVAE.

    A reflection needs more samples than it adds. Audio of half a frame or less has too few (PyTorch raises an error
    then) and is followed by zeros instead.
    """
    samples = end.shape[1]
    if not reflect or missing >= samples:
        return np.zeros((len(end), missing), np.float32)
    return end[:, samples - 1 - missing : samples - 1][:, ::-1]


def frame_noise(key: PRNGKeyArray, batch: int, frames: int, channels: int) -> Float[np.ndarray, "b t c"]:
    """Unit normal noise that depends only on the key and the frame number, so it is the same for every windowing."""
    blocks = [np.asarray(_noise_block(key, start, batch, channels)) for start in range(0, frames, _NOISE_BLOCK)]
    return np.concatenate(blocks, axis=1)[:, :frames]


_NOISE_BLOCK = 64


@partial(jax.jit, static_argnames=("batch", "channels"))
def _noise_block(key: PRNGKeyArray, start: Any, batch: int, channels: int) -> Float[Array, "b t c"]:
    numbers = start + jnp.arange(_NOISE_BLOCK)
    draw = jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), (batch, channels)), out_axes=1)
    return draw(numbers)


@jax.jit
def _embedded(params: Params, codes: Integer[Array, "b t q"]) -> Float[Array, "b t c"]:
    """Latents of codes: a program of its own, so that the decoder is compiled once for both."""
    with jax.default_matmul_precision("highest"):
        return embed(params, codes.swapaxes(1, 2))


@partial(jax.jit, static_argnames="config", donate_argnames="carry")
def _decode_window(
    params: Params, config: CodecConfig, latent: Float[Array, "b t c"], carry: Carry, before: Any, left: Any
) -> tuple[tuple[Float[Array, "b n"]], Carry]:
    past = Past(carry)
    with jax.default_matmul_precision("highest"):
        return (decode_frames(params, config, latent, Window(past, before, left)),), past.carry


def lower_decode_window(config: CodecConfig, frames: int, place: Any) -> tuple[Any, int]:
    """The lowered program that decodes one window, for a sharding whose device may be absent, and its delay."""
    shape = (1, frames, config.latent_channels)
    carry, delay = plan(decode_frames, config, shape)
    params = abstract_params(config)
    before, left = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    params, latent, carry, before, left = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        (params, jax.ShapeDtypeStruct(shape, jnp.float32), carry, before, left),
    )
    return _decode_window.lower(params, config, latent, carry, before, left), delay


@partial(jax.jit, static_argnames=("config", "n_quantizers"), donate_argnames="carry")
def _encode_window(
    params: Params,
    config: CodecConfig,
    audio: Float[Array, "b n"],
    carry: Carry,
    before: Any,
    left: Any,
    n_quantizers: int | None,
) -> tuple[tuple[Array, Array], Carry]:
    """Encodes one window; for DAC the second output is the codes as (b, t, q)."""
    past = Past(carry)
    window = Window(past, before, left)
    with jax.default_matmul_precision("highest"):
        if not config.quantized:
            return encode_frames(params, config, audio, window), past.carry
        embeddings, codes = quantize(params, encode_features(params, config, audio, window), n_quantizers)
        return (embeddings, codes.swapaxes(1, 2)), past.carry


def _pushed(stream: Any, signal: np.ndarray, width: int) -> Iterator[Any]:
    """Yields a stream's outputs for a whole signal; the time axis of codes is the last one."""
    codes = signal.dtype.kind in "iu"
    for start in range(0, signal.shape[-1 if codes else 1], width):
        part = np.s_[start : start + width]
        yield stream.push(signal[:, :, part] if codes else signal[:, part])
    yield stream.finish()


def _silenced(piece: EncoderOutputs, ends: Sequence[int], config: CodecConfig) -> EncoderOutputs:
    """Zeroes what follows each row's end."""
    first, second = np.array(piece[0]), np.array(piece[1])
    for row, end in enumerate(ends):
        first[row, end:] = 0
        (second[row].T if config.quantized else second[row])[end:] = 0
    return first, second


def _filled_rows(
    audio: Float[np.ndarray, "b n"], lengths: Sequence[int], config: CodecConfig
) -> Float[np.ndarray, "b m"]:
    """The rows with each last frame filled at the row's own end, then zeros."""
    hop = config.hop_length
    filled = np.zeros((len(audio), -(-max(lengths) // hop) * hop), np.float32)
    for row, samples, length in zip(filled, audio, lengths, strict=True):
        end = length + -length % hop
        row[:length] = samples[:length]
        row[length:end] = fill(samples[None, :length], end - length, reflect=not config.quantized)[0]
    return filled
