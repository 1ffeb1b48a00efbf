"""Class Codec: encodes and decodes arrays and files of any length with the weights of one file."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from echotts.audio import MP3_RATE_KBPS
from echotts.codec.config import CodecConfig
from echotts.codec.fast import prepare
from echotts.codec.layers import Params
from echotts.codec.quantizer import embed
from echotts.codec.sound import (
    SILENT_LUFS,
    Block,
    LoudnessMeter,
    Resampler,
    SoundFile,
    Spool,
    measured_loudness,
    write_sound,
)
from echotts.codec.tokens import Encoded, load_encoded, save_encoded
from echotts.codec.unpadded import decode_chunk
from echotts.codec.watermark import MESSAGE, MESSAGE_BITS
from echotts.codec.weights import hash_weights, to_device
from echotts.codec.windows import (
    DecoderStream,
    EncoderStream,
    decode_windows,
    encode_windows,
    frame_noise,
    powers_of_two,
)

# On a CPU: small enough for the caches, large enough to amortise reading the weights.
_CPU_WINDOW_S = 0.8
_ACCELERATOR_WINDOW_S = 4.0
_WIDE = 1024  # channels of a decoder for which the longer compilation of prepared kernels pays
_embed = jax.jit(embed)
LOUDNESS_LUFS = -16.0  # of a recording that `compress` encodes
Progress = Callable[[float], None]
"""Called periodically with the number of further seconds of audio processed."""
_EDGE_FRAMES = 16  # wider than the one-sided receptive field of any DACVAE or DAC encoder


class Tokens(NamedTuple):
    """Output of DAC's encoder: the sums of quantized vectors, ready for `decode`, and the codes they came from."""

    embeddings: Float[np.ndarray, "b t d"]
    codes: Integer[np.ndarray, "b q t"]


class Codec:
    """A DACVAE or DAC codec: audio to latents and back, computed in windows with the result of a single pass.

    The two families differ only in the bottleneck. Latents of DACVAE are the posterior mean, or a sample. Those of DAC
    are embeddings, the sums of quantized vectors; `encode_tokens` also returns the codes, and `decode` takes either.
    DAC at 16 and 24 kHz decodes to 8 samples fewer than frames * hop_length (320), like the published models.

    Args:
        params: folded parameters, with an entry "watermark" if the weights have one.
        codec_id: the name under which checkpoints and datasets record the codec, together with its weights hash.
        window_frames: latent frames per window; affects speed and memory, not the result.
        device: where to compute; None means JAX's default.
    """

    def __init__(
        self,
        params: Params,
        config: CodecConfig,
        codec_id: str,
        window_frames: int | None = None,
        device: Any = None,
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

    def on_device(self, device: Any) -> "Codec":
        """The same codec on another device."""
        codec = Codec(self.params, self.config, self.codec_id, self.window_frames, device)
        codec.message = self.message
        return codec

    def watermarked(self, message: Sequence[int] = MESSAGE) -> "Codec":
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

    def stream_decoder(
        self, batch: int = 1, watermark: Integer[Array | np.ndarray, "b bits"] | None = None
    ) -> DecoderStream:
        """A decoder for latents that arrive in pieces: call `push(latents)` for each piece, then `finish()`.

        Each call returns the samples (batch, n) that are fully determined; concatenated, they equal `decode` of all.
        """
        message = self._messages(watermark, batch)
        return DecoderStream(self.decoding, self.config, batch, powers_of_two(self.window_frames), message)

    def encode_file(self, path: str | Path, n_quantizers: int | None = None) -> Tokens | Float[np.ndarray, "c t d"]:
        """Encodes a recording into `Tokens` (DAC: embeddings and codes) or latents (DACVAE), one row per channel.

        Reads any format that audio.read_audio reads, at any rate, length and number of channels; keeps the level.
        """
        tokens = self.compress(path, n_quantizers, loudness=None).tokens
        if not self.config.quantized:
            return np.array(tokens)
        codes = tokens.astype(np.int32)
        return Tokens(np.asarray(_embed(self.params, codes)), codes)

    def save_audio(self, path: str | Path, audio: Float[Array | np.ndarray, "*c n"]) -> None:
        """Writes the output of `decode`, one channel per row, as .wav, .flac, .ogg or .mp3; clips at full scale."""
        samples = _checked(np.atleast_2d(audio), 2, "audio must be (channels, samples)")
        write_sound(path, [samples], self.sample_rate, len(samples), samples.shape[1])

    def save_tokens(self, path: str | Path, tokens: Array | np.ndarray) -> None:
        """Writes codes (c, q, t) or DACVAE latents (c, t, d) as .npz or .safetensors; codes also as .dac."""
        encoded = Encoded(tokens=np.asarray(tokens), codec_id=self.codec_id, weights_hash=self.weights_hash)
        self.check_tokens(encoded)
        length = self.config.output_samples(encoded.frames)
        save_encoded(path, replace(encoded, sample_rate=self.sample_rate, original_length=length))

    def load_tokens(self, path: str | Path) -> np.ndarray:
        """Reads codes or latents written by `save_tokens` or `compress`; ValueError if another codec made them."""
        encoded = load_encoded(path)
        try:
            self.check_tokens(encoded)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return encoded.tokens.astype(np.int32 if encoded.are_codes else np.float32)

    def compress(
        self,
        path: str | Path,
        n_quantizers: int | None = None,
        loudness: float | None = LOUDNESS_LUFS,
        progress: Progress = lambda seconds: None,
    ) -> Encoded:
        """A recording's tokens: codes for DAC, posterior means for DACVAE; with what `decompress` restores of it.

        With `loudness` (LUFS) the recording is first normalised to that level, limited so that the peak stays at or
        below 1, and its original level is stored with the tokens; the file is then read twice. tokens.save_encoded
        writes the result. Errors are those of `SoundFile`.
        """
        sound = SoundFile(path)
        gain, measured = 1.0, None
        if loudness is not None:
            meter = measured_loudness(sound.blocks(self.sample_rate), self.sample_rate, sound.channels)
            measured = meter.loudness()
            gain = 1.0 if measured <= SILENT_LUFS else 10.0 ** ((loudness - measured) / 20.0)
            gain = min(gain, 1.0 / max(meter.peak, 1e-9))
        widths = (self.window_frames,)
        stream = EncoderStream(self.encoding, self.config, sound.channels, widths, self.check_quantizers(n_quantizers))
        spool = Spool()
        for block in sound.blocks(self.sample_rate):
            self._collect(spool, stream.push(np.float32(gain) * block))
            progress(block.shape[1] / self.sample_rate)
        self._collect(spool, stream.finish())
        tokens = spool.array()
        return Encoded(
            tokens=tokens.swapaxes(1, 2) if self.config.quantized else tokens,
            sample_rate=sound.sample_rate,
            original_length=sound.samples,
            loudness_lufs=measured,
            codec_id=self.codec_id,
            weights_hash=self.weights_hash,
        )

    def decompress(
        self, encoded: Encoded | str | Path, n_quantizers: int | None = None
    ) -> tuple[Float[np.ndarray, "c n"], int]:
        """The restored recording and its sample rate, from `compress` or a token file (including .dac files)."""
        if not isinstance(encoded, Encoded):
            encoded = load_encoded(encoded)
        blocks = list(self._restored_blocks(encoded, n_quantizers))
        return np.concatenate(blocks, axis=1), encoded.sample_rate or self.sample_rate

    def decompress_to_file(
        self,
        encoded: Encoded,
        path: str | Path,
        n_quantizers: int | None = None,
        progress: Progress = lambda seconds: None,
        mp3_rate: int = MP3_RATE_KBPS,
    ) -> int:
        """Writes the restored recording, of any length; returns the number of samples per channel."""
        rate, channels = encoded.sample_rate or self.sample_rate, len(encoded.tokens)
        blocks = self._restored_blocks(encoded, n_quantizers, progress)
        return write_sound(path, blocks, rate, channels, encoded.original_length or 0, mp3_rate)

    def decoded_blocks(
        self, encoded: Encoded, n_quantizers: int | None = None, message: np.ndarray | None = None
    ) -> Iterator[Block]:
        """Audio decoded from tokens, window by window, at the codec's rate and level. ValueError for another codec's.

        `message` (bits,) of 0 and 1 is embedded in every channel as a watermark.
        """
        self.check_tokens(encoded)
        n_quantizers = self.check_quantizers(n_quantizers)
        if encoded.chunk_length is not None:
            yield from self._chunks(encoded, n_quantizers)
            return
        rows = len(encoded.tokens)
        messages = self._messages(None if message is None else np.tile(message, (rows, 1)), rows)
        stream = DecoderStream(self.decoding, self.config, rows, (self.window_frames,), messages)
        for start in range(0, encoded.frames, self.window_frames):
            part = np.s_[start : start + self.window_frames]
            piece = encoded.tokens[:, :n_quantizers, part] if encoded.are_codes else encoded.tokens[:, part]
            yield stream.push(np.ascontiguousarray(piece))
        yield stream.finish()

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

    def _restored_blocks(
        self, encoded: Encoded, n_quantizers: int | None, progress: Progress = lambda seconds: None
    ) -> Iterator[Block]:
        """The recording with its loudness, rate and length. Decoded audio waits in a file for its loudness."""
        rate, channels = encoded.sample_rate or self.sample_rate, len(encoded.tokens)
        spool, meter = Spool(), LoudnessMeter(self.sample_rate, channels)
        for block in self.decoded_blocks(encoded, n_quantizers):
            meter.push(block)
            spool.append(block)
            progress(block.shape[1] / self.sample_rate)
        gain = 1.0
        if encoded.loudness_lufs is not None and meter.loudness() > SILENT_LUFS:
            gain = 10.0 ** ((encoded.loudness_lufs - meter.loudness()) / 20.0)
        sound = spool.array()
        resampler, left = Resampler(self.sample_rate, rate, channels), encoded.original_length

        def resampled() -> Iterator[Block]:
            for start in range(0, sound.shape[1], self.sample_rate):
                yield resampler.push(np.float32(gain) * sound[:, start : start + self.sample_rate])
            yield resampler.finish()

        for block in resampled():
            cut = block if left is None else block[:, :left]
            left = None if left is None else left - cut.shape[1]
            yield cut
        if left:
            yield np.zeros((channels, left), np.float32)  # DAC at 16 and 24 kHz decodes 8 samples fewer

    def check_tokens(self, encoded: Encoded) -> None:
        """Raises ValueError if the tokens belong to another codec, by weights hash or by shape and range."""
        if encoded.weights_hash is not None and encoded.weights_hash != self.weights_hash:
            name = encoded.codec_id or "another codec"
            raise ValueError(
                f"the tokens are from {name}, weights {encoded.weights_hash[:12]}, not from codec {self.codec_id}"
            )
        if encoded.are_codes != self.config.quantized:
            kind = "codes" if encoded.are_codes else "latents"
            raise ValueError(
                f"the tokens are {kind}, which codec {self.codec_id} cannot decode: name the codec that made them"
            )
        tokens = encoded.tokens
        config = self.config
        if not encoded.are_codes:
            if tokens.shape[2] != self.latent_channels:
                raise ValueError(
                    f"latents have {tokens.shape[2]} channels, codec {self.codec_id} has {self.latent_channels}"
                )
        elif tokens.shape[1] > config.n_codebooks or not 0 <= tokens.min() <= tokens.max() < config.codebook_size:
            raise ValueError(
                f"the tokens have {tokens.shape[1]} codebooks with codes {tokens.min()} to {tokens.max()}: "
                f"codec {self.codec_id} has {config.n_codebooks} of {config.codebook_size}"
            )

    def _collect(self, spool: Spool, outputs: tuple[np.ndarray, np.ndarray]) -> None:
        first, second = outputs
        spool.append(second.swapaxes(1, 2).astype(np.uint16) if self.config.quantized else first)

    def _chunks(self, encoded: Encoded, n_quantizers: int | None) -> Iterator[Block]:
        """Decodes each chunk alone and unpadded, as descript-audio-codec encodes audio longer than one window."""
        length = encoded.chunk_length or encoded.frames
        for start in range(0, encoded.frames, length):
            codes = encoded.tokens[:, :n_quantizers, start : start + length]
            yield np.asarray(decode_chunk(self.params, self.config, np.ascontiguousarray(codes).astype(np.int32)))

    def _audio(self, audio: Any, lengths: Sequence[int] | None) -> tuple[np.ndarray, list[int] | None]:
        samples = _checked(audio, 2, "audio must be (batch, samples)")
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


def _checked(values: Any, dimensions: int, rule: str) -> np.ndarray:
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
