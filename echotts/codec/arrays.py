"""Arrays in and out of a codec: checked, then encoded and decoded in windows."""

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from echotts.audio.marking import MESSAGE, MESSAGE_BITS
from echotts.codec.config import CodecConfig
from echotts.codec.fast import prepare
from echotts.codec.layers import Params
from echotts.codec.weights import hash_weights, to_device
from echotts.codec.windows import (
    DecoderStream,
    decode_blocks,
    decode_windows,
    encode_windows,
    frame_noise,
    powers_of_two,
)

# On a CPU: small enough for the caches, large enough to amortise reading the weights.
_CPU_WINDOW_S = 0.8
_ACCELERATOR_WINDOW_S = 4.0
_WIDE = 1024  # channels of a decoder for which the longer compilation of prepared kernels pays
_EDGE_FRAMES = 16  # wider than the one-sided receptive field of any DACVAE or DAC encoder

SomeCodec = TypeVar("SomeCodec", bound="ArrayCodec")


class Tokens(NamedTuple):
    """Output of DAC's encoder: the sums of quantized vectors, ready for `decode`, and the codes they came from."""

    embeddings: Float[np.ndarray, "b t d"]
    codes: Integer[np.ndarray, "b q t"]


class ArrayCodec:
    """The part of `Codec` (codec.py) that has no files: its parameters, `encode` and `decode`."""

    def __init__(
        self, params: Params, config: CodecConfig, codec_id: str, window_frames: int | None = None, device: Any = None
    ) -> None:
        if window_frames is not None and window_frames < 1:
            raise ValueError(f"window_frames {window_frames} must be at least 1")
        self.config = config
        self.codec_id = codec_id
        self.params = to_device(params, device)
        seconds = _CPU_WINDOW_S if jax.default_backend() == "cpu" else _ACCELERATOR_WINDOW_S
        default = max(1, round(seconds * config.sample_rate / config.hop_length))
        self.window_frames = default if window_frames is None else window_frames
        self.message: Sequence[int] | None = None  # what decoding embeds by default, see `watermarked`

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz of the input of `encode` and the output of `decode`."""
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return self.config.hop_length

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def has_watermark(self) -> bool:
        """Whether the weights include a watermark, so that `decode` can embed a message."""
        return "watermark" in self.params

    @cached_property
    def encoding(self) -> Params:
        """The parameters as windows encode with them: on a CPU prepared for speed (fast.py)."""
        return self._prepared("encoder")

    @cached_property
    def decoding(self) -> Params:
        """The parameters as windows decode with them: on a CPU prepared for speed (fast.py)."""
        return self._prepared("decoder")

    def _prepared(self, part: str) -> Params:
        (device,) = self.params["decoder"]["head"]["bias"].devices()
        if device.platform != "cpu" or self.config.decoder_dim < _WIDE:
            return self.params
        others = {name: tree for name, tree in self.params.items() if name not in ("encoder", "decoder")}
        return others | {part: to_device(prepare(self.params[part]), device)}

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the folded weights, the same for every file format."""
        return hash_weights(self.params)

    def on_device(self: SomeCodec, device: Any) -> SomeCodec:
        """The same codec on another device."""
        codec = type(self)(self.params, self.config, self.codec_id, self.window_frames, device)
        codec.message = self.message
        return codec

    def watermarked(self: SomeCodec, message: Sequence[int] = MESSAGE) -> SomeCodec:
        """The same codec, whose decoding embeds `message` by default. ValueError if its weights have no watermark."""
        codec = copy.copy(self)
        codec.message = message
        codec._messages(None, 1)
        return codec

    def encode(
        self,
        audio: Float[Array | np.ndarray, "b n"],
        key: PRNGKeyArray | None = None,
        *,
        lengths: Sequence[int] | None = None,
        n_quantizers: int | None = None,
    ) -> Float[np.ndarray, "b t c"]:
        """Latents of mono audio at `sample_rate`, in -1..1, of any length; t = ceil(n / hop).

        Returns the posterior mean, or with a key a sample of the posterior (its noise depends only on the key and the
        frame number). DAC returns embeddings from the first `n_quantizers` codebooks (default: all). `lengths` gives
        the length of each row in samples: the latents of a row are those of encoding it alone, followed by zeros.
        The last frame is filled by reflecting the end of the audio (DAC: with zeros). Audio of half a frame or less is
        too short to reflect and is filled with zeros. Resampling and loudness normalisation are up to the caller.
        Raises ValueError for empty or non-finite audio, and for options of the other family.
        """
        samples, lengths = self._audio(audio, lengths)
        if self.config.quantized and key is not None:
            raise ValueError(f"codec {self.codec_id} has no posterior to sample from: do not pass a key")
        count = self.check_quantizers(n_quantizers)
        pieces = list(encode_windows(self.encoding, self.config, samples, self.window_frames, count, lengths))
        latent = np.concatenate([first for first, _ in pieces], axis=1)
        if key is None:
            return latent
        std = np.concatenate([second for _, second in pieces], axis=1)
        return latent + std * frame_noise(key, *latent.shape)

    def encode_tokens(
        self,
        audio: Float[Array | np.ndarray, "b n"],
        n_quantizers: int | None = None,
        *,
        lengths: Sequence[int] | None = None,
    ) -> Tokens:
        """Embeddings and codes of mono audio from the first `n_quantizers` codebooks (DAC only); see `encode`."""
        samples, lengths = self._audio(audio, lengths)
        count = self.check_quantizers(n_quantizers)
        if not self.config.quantized:
            raise self._no_codebooks()
        pieces = list(encode_windows(self.encoding, self.config, samples, self.window_frames, count, lengths))
        embeddings = np.concatenate([first for first, _ in pieces], axis=1)
        return Tokens(embeddings, np.concatenate([codes for _, codes in pieces], axis=2))

    def decode(
        self,
        latent: Float[Array | np.ndarray, "b t c"] | None = None,
        watermark: Integer[Array | np.ndarray, "b bits"] | None = None,
        *,
        codes: Integer[Array | np.ndarray, "b q t"] | None = None,
        lengths: Sequence[int] | None = None,
        n_quantizers: int | None = None,
    ) -> Float[np.ndarray, "b n"]:
        """Audio decoded from latents or DAC codes of any length; n = t * hop (DAC at 16 and 24 kHz: minus 8).

        Clean audio is within -1..1. `watermark`, 16 bits (0 or 1) per row, embeds that message in the audio, which may
        then slightly exceed 1; without it the audio is clean (the original DACVAE always adds a random message) or
        has the codec's own message (see `watermarked`).
        Only the first `n_quantizers` codebooks of `codes` are used (default: all). `lengths` gives the length of each
        row in frames: the audio of a row is that of decoding it alone, followed by zeros. Raises ValueError for arrays
        of the wrong shape or range.
        """
        values = self._decodable(latent, codes, n_quantizers)
        frames = values.shape[2] if values.dtype.kind == "i" else values.shape[1]
        message = self._messages(watermark, len(values))
        rows = _lengths(lengths, len(values), frames)
        return decode_windows(self.decoding, self.config, values, self.window_frames, message, rows)

    def decode_blocks(
        self, latent: Float[Array | np.ndarray, "b t c"], watermark: Integer[Array | np.ndarray, "b bits"] | None = None
    ) -> Iterator[Float[np.ndarray, "b n"]]:
        """Yields the audio of `decode` window by window as it is computed, with the windows that `decode` compiles."""
        values = self._decodable(latent, None, None)
        message = self._messages(watermark, len(values))
        yield from decode_blocks(self.decoding, self.config, values, self.window_frames, message)

    def stream_decoder(
        self, batch: int = 1, watermark: Integer[Array | np.ndarray, "b bits"] | None = None
    ) -> DecoderStream:
        """A decoder for latents that arrive in pieces: call `push(latents)` for each piece, then `finish()`.

        Each call returns the samples (batch, n) that are fully determined; concatenated, they equal `decode` of all.
        """
        message = self._messages(watermark, batch)
        return DecoderStream(self.decoding, self.config, batch, powers_of_two(self.window_frames), message)

    def silence_latent(self, frames: int) -> Float[np.ndarray, "t c"]:
        """Latents of `frames` frames of digital silence, used to pad speech to a fixed length."""
        frames = int(frames)
        if frames < 1:
            raise ValueError(f"silence of {frames} frames: at least one is needed")
        shortest = min(frames, 2 * _EDGE_FRAMES + 1)
        latent = self.encode(np.zeros((1, shortest * self.hop_length), np.float32))[0]
        # frames whose receptive field reaches neither end are identical
        middle = np.repeat(latent[_EDGE_FRAMES : _EDGE_FRAMES + 1], frames - shortest, axis=0)
        return np.concatenate([latent[:_EDGE_FRAMES], middle, latent[_EDGE_FRAMES:]])

    def _audio(self, audio: Any, lengths: Sequence[int] | None) -> tuple[np.ndarray, list[int] | None]:
        samples = checked_array(audio, 2, "audio must be (batch, samples)")
        if not samples.shape[1]:
            raise ValueError("audio has no samples: give at least one")
        return samples, _lengths(lengths, *samples.shape)

    def _no_codebooks(self) -> ValueError:
        return ValueError(f"codec {self.codec_id} has no codebooks: only DAC codecs have codes")

    def _decodable(self, latent: Any, codes: Any, n_quantizers: int | None) -> np.ndarray:
        """Validated float latents (b, t, c) or int32 codes (b, q, t)."""
        if (latent is None) == (codes is None):
            raise ValueError("pass either latents or codes to decode, not both")
        if latent is not None:
            latents = checked_array(latent, 3, f"latents must be (batch, frames, {self.latent_channels})")
            if latents.shape[2] != self.latent_channels:
                raise ValueError(
                    f"latents have {latents.shape[2]} channels, codec {self.codec_id} has {self.latent_channels}"
                )
            return latents
        if not self.config.quantized:
            raise self._no_codebooks()
        numbers = np.asarray(codes)
        count, size = self.config.n_codebooks, self.config.codebook_size
        if (
            numbers.ndim != 3
            or not len(numbers)
            or not 1 <= numbers.shape[1] <= count
            or numbers.dtype.kind not in "iu"
        ):
            raise ValueError(f"codes must be integers (batch, 1 to {count}, frames), not {numbers.shape}")
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < size:
            raise ValueError(f"codes must be in 0..{size - 1}, but range from {numbers.min()} to {numbers.max()}")
        return numbers[:, : self.check_quantizers(n_quantizers)].astype(np.int32)

    def check_quantizers(self, count: int | None) -> int | None:
        """Returns the number of codebooks to use; ValueError if the codec has fewer, or none."""
        if count is not None and not self.config.quantized:
            raise self._no_codebooks()
        if count is not None and not 1 <= count <= self.config.n_codebooks:
            raise ValueError(
                f"n_quantizers {count}: codec {self.codec_id} has codebooks 1 to {self.config.n_codebooks}"
            )
        return count

    def _messages(self, watermark: Any, batch: int) -> np.ndarray | None:
        """The messages to embed as int32, one row each; ValueError if invalid or the codec has no watermark."""
        if watermark is None and self.message is None:
            return None
        if watermark is None:
            watermark = np.tile(np.asarray(self.message), (batch, 1))
        if not self.has_watermark:
            raise ValueError(f"codec {self.codec_id} has no watermark: do not pass a message")
        message = np.asarray(watermark)
        if message.shape != (batch, MESSAGE_BITS) or not np.isin(message, (0, 1)).all():
            raise ValueError(f"watermark must be ({batch}, {MESSAGE_BITS}) of 0 and 1, got shape {message.shape}")
        return message.astype(np.int32)


def checked_array(values: Any, dimensions: int, rule: str) -> np.ndarray:
    array = np.asarray(values, np.float32)
    if array.ndim != dimensions or not array.shape[0]:
        raise ValueError(f"{rule}, not shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{rule} and finite; some values are NaN or infinite")
    return array


def _lengths(lengths: Sequence[int] | None, batch: int, longest: int) -> list[int] | None:
    if lengths is None:
        return None
    rows = [int(length) for length in lengths]
    if len(rows) != batch or not all(1 <= length <= longest for length in rows):
        raise ValueError(f"lengths must be {batch} integers from 1 to {longest}, got {rows}")
    return rows
