"""The codec as the rest of the program uses it: arrays of any length in, arrays out, on the weights of one file."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from echotts.codec.backbone import CodecConfig
from echotts.codec.layers import Params
from echotts.codec.watermark import MESSAGE_BITS
from echotts.codec.weights import hash_weights, to_device
from echotts.codec.windows import DecoderStream, decode_windows, encode_windows, frame_noise, powers_of_two

# On a CPU small enough for the caches, large enough to amortise reading the weights.
_CPU_WINDOW_S = 0.8
_ACCELERATOR_WINDOW_S = 4.0
_EDGE_FRAMES = 16  # more than any encoder of these families sees in one direction


class Tokens(NamedTuple):
    """What DAC makes of audio: the sums of quantized vectors, which decode as they are, and the codes behind them."""

    embeddings: Float[np.ndarray, "b t d"]
    codes: Integer[np.ndarray, "b q t"]


class Codec:
    """A DACVAE or a DAC: audio to latents and back, in windows that equal the whole.

    The families differ in the bottleneck alone. Latents of DACVAE are the posterior's mean, or a sample. Those of DAC
    are embeddings, the sums of quantized vectors; `encode_tokens` gives the codes too, and `decode` takes either. DAC
    at 16 and 24 kHz decodes to 8 samples less than frames * hop_length (320), as the published models do.

    Args:
        params: folded parameters, with the entry "watermark" where the weights have one.
        codec_id: by which checkpoints and data sets name it, beside the hash of its weights.
        window_frames: latent frames at a time; changes speed and memory, not the result.
    """

    def __init__(self, params: Params, config: CodecConfig, codec_id: str, window_frames: int | None = None) -> None:
        if window_frames is not None and window_frames < 1:
            raise ValueError(f"window_frames {window_frames} must be at least 1")
        self.config = config
        self.codec_id = codec_id
        self.params = to_device(params)
        seconds = _CPU_WINDOW_S if jax.default_backend() == "cpu" else _ACCELERATOR_WINDOW_S
        default = max(1, round(seconds * config.sample_rate / config.hop_length))
        self.window_frames = default if window_frames is None else window_frames

    @property
    def sample_rate(self) -> int:
        """Hz, of what `encode` takes and `decode` gives."""
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
        """Whether `decode` can lay a message under the audio."""
        return "watermark" in self.params

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the folded weights, the same for every file format."""
        return hash_weights(self.params)

    def encode(
        self,
        audio: Float[Array | np.ndarray, "b n"],
        key: PRNGKeyArray | None = None,
        *,
        lengths: Sequence[int] | None = None,
        n_quantizers: int | None = None,
    ) -> Float[np.ndarray, "b t c"]:
        """Latents of mono audio at `sample_rate`, -1..1, of any length; t = ceil(n / hop).

        The posterior mean; with a key, a sample of the posterior (the noise is a function of the key and the frame).
        DAC: embeddings by the first `n_quantizers` codebooks, all unless given. `lengths` are the rows' own, in
        samples: a row's latents are what they are alone, with zeros behind.
        The last frame is filled by reflecting the end of the audio (DAC: with zeros); audio of half a frame or less is
        too short to be reflected and is filled with zeros. Resampling and loudness are the caller's. Raises ValueError
        without samples, for numbers that are not finite, and for options of the other family.
        """
        samples, lengths = self._audio(audio, lengths)
        if self.config.quantized:
            if key is not None:
                raise ValueError(f"codec {self.codec_id} quantizes and has no posterior to sample: leave the key out")
        elif n_quantizers is not None:
            raise self._no_codebooks()
        count = self._quantizers(n_quantizers)
        pieces = list(encode_windows(self.params, self.config, samples, self.window_frames, count, lengths))
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
        """DAC: embeddings and codes of mono audio by the first `n_quantizers` codebooks; see `encode`."""
        samples, lengths = self._audio(audio, lengths)
        count = self._quantizers(n_quantizers)
        if not self.config.quantized:
            raise self._no_codebooks()
        pieces = list(encode_windows(self.params, self.config, samples, self.window_frames, count, lengths))
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
        """Audio of latents, or codes of DAC, of any length; n = t * hop exactly (DAC at 16 and 24 kHz: less 8).

        Clean audio is within -1..1. `watermark`, 16 bits 0 or 1 for each row, lays that message under the audio, which
        may then exceed 1 a little; without it the audio is clean (the original DACVAE always adds a random message).
        Of `codes` the first `n_quantizers` codebooks are used, all unless given. `lengths` are the rows' own, in
        frames: a row's audio is what it is alone, with zeros behind. ValueError for arrays of another shape or range.
        """
        values = self._decodable(latent, codes, n_quantizers)
        frames = values.shape[2] if values.dtype.kind == "i" else values.shape[1]
        message = None if watermark is None else self._message(watermark, len(values))
        rows = _lengths(lengths, len(values), frames)
        return decode_windows(self.params, self.config, values, self.window_frames, message, rows)

    def stream_decoder(
        self, batch: int = 1, watermark: Integer[Array | np.ndarray, "b bits"] | None = None
    ) -> DecoderStream:
        """A decoder for latents that come bit by bit: `push(latents)` as often as they come, then `finish()`.

        Each gives the samples (batch, n) that are determined by then; joined, they are what `decode` gives of all.
        """
        message = None if watermark is None else self._message(watermark, batch)
        return DecoderStream(self.params, self.config, batch, powers_of_two(self.window_frames), message)

    def silence_latent(self, frames: int) -> Float[np.ndarray, "t c"]:
        """Latents of that many frames of digital silence: what pads speech to a fixed length."""
        frames = int(frames)
        if frames < 1:
            raise ValueError(f"silence of {frames} frames: ask for at least one")
        shortest = min(frames, 2 * _EDGE_FRAMES + 1)
        latent = self.encode(np.zeros((1, shortest * self.hop_length), np.float32))[0]
        # all frames that see neither end are the same frame
        middle = np.repeat(latent[_EDGE_FRAMES : _EDGE_FRAMES + 1], frames - shortest, axis=0)
        return np.concatenate([latent[:_EDGE_FRAMES], middle, latent[_EDGE_FRAMES:]])

    def _audio(self, audio: Any, lengths: Sequence[int] | None) -> tuple[np.ndarray, list[int] | None]:
        samples = _checked(audio, 2, "audio must be (batch, samples)")
        if not samples.shape[1]:
            raise ValueError("audio has no samples: give at least one")
        return samples, _lengths(lengths, *samples.shape)

    def _quantizers(self, count: int | None) -> int | None:
        if count is not None and not 1 <= count <= self.config.n_codebooks:
            raise ValueError(
                f"n_quantizers {count}: codec {self.codec_id} has codebooks 1 to {self.config.n_codebooks}"
            )
        return count

    def _no_codebooks(self) -> ValueError:
        return ValueError(f"codec {self.codec_id} has no codebooks: only DAC makes and takes codes")

    def _decodable(self, latent: Any, codes: Any, n_quantizers: int | None) -> np.ndarray:
        """Float latents (b, t, c) or int32 codes (b, q, t), checked."""
        if (latent is None) == (codes is None):
            raise ValueError("give latents or codes to decode, one of them")
        if latent is not None:
            latents = _checked(latent, 3, f"latents must be (batch, frames, {self.latent_channels})")
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
            raise ValueError(f"codes must be whole numbers (batch, 1 to {count}, frames), not {numbers.shape}")
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < size:
            raise ValueError(f"codes must be 0 to {size - 1}, and some are {numbers.min()} or {numbers.max()}")
        return numbers[:, : self._quantizers(n_quantizers)].astype(np.int32)

    def _message(self, watermark: Any, batch: int) -> np.ndarray:
        if not self.has_watermark:
            raise ValueError(f"codec {self.codec_id} has no watermark: leave the message out")
        message = np.asarray(watermark)
        if message.shape != (batch, MESSAGE_BITS) or not np.isin(message, (0, 1)).all():
            raise ValueError(f"watermark must be ({batch}, {MESSAGE_BITS}) of 0 and 1, not shape {message.shape}")
        return message.astype(np.int32)


def _checked(values: Any, dimensions: int, rule: str) -> np.ndarray:
    array = np.asarray(values, np.float32)
    if array.ndim != dimensions or not array.shape[0]:
        raise ValueError(f"{rule}, not shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{rule}: finite numbers, and some are not")
    return array


def _lengths(lengths: Sequence[int] | None, batch: int, longest: int) -> list[int] | None:
    if lengths is None:
        return None
    rows = [int(length) for length in lengths]
    if len(rows) != batch or not all(1 <= length <= longest for length in rows):
        raise ValueError(f"lengths must be {batch} numbers from 1 to {longest}, not {rows}")
    return rows
