"""The codec as the rest of the program uses it: arrays of any length in, arrays out, on the weights of one file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from echotts.audio import MP3_RATE_KBPS
from echotts.codec.backbone import CodecConfig
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
from echotts.codec.watermark import MESSAGE_BITS
from echotts.codec.weights import hash_weights, to_device
from echotts.codec.windows import (
    DecoderStream,
    EncoderStream,
    decode_windows,
    encode_windows,
    frame_noise,
    powers_of_two,
)

# On a CPU small enough for the caches, large enough to amortise reading the weights.
_CPU_WINDOW_S = 0.8
_ACCELERATOR_WINDOW_S = 4.0
_embed = jax.jit(embed)
LOUDNESS_LUFS = -16.0  # to which `compress` brings a recording
Progress = Callable[[float], None]
"""Told, every now and then, how many more seconds of sound are done."""
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
        device: where it computes; None: JAX's default.
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

    def on_device(self, device: Any) -> "Codec":
        """The same codec, computing on that device."""
        return Codec(self.params, self.config, self.codec_id, self.window_frames, device)

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
        if self.config.quantized and key is not None:
            raise ValueError(f"codec {self.codec_id} quantizes and has no posterior to sample: leave the key out")
        count = self.check_quantizers(n_quantizers)
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
        count = self.check_quantizers(n_quantizers)
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
        message = None if watermark is None else self.check_message(watermark, len(values))
        rows = _lengths(lengths, len(values), frames)
        return decode_windows(self.params, self.config, values, self.window_frames, message, rows)

    def stream_decoder(
        self, batch: int = 1, watermark: Integer[Array | np.ndarray, "b bits"] | None = None
    ) -> DecoderStream:
        """A decoder for latents that arrive in pieces: `push(latents)` as often as they come, then `finish()`.

        Each gives the samples (batch, n) that are determined by then; joined, they are what `decode` gives of all.
        """
        message = None if watermark is None else self.check_message(watermark, batch)
        return DecoderStream(self.params, self.config, batch, powers_of_two(self.window_frames), message)

    def encode_file(self, path: str | Path, n_quantizers: int | None = None) -> Tokens | Float[np.ndarray, "c t d"]:
        """A recording as `Tokens` (DAC: embeddings and codes) or latents (DACVAE), its channels as rows.

        Any format that audio.read_audio reads, any rate, length and number of channels; the level is left as it is.
        """
        tokens = self.compress(path, n_quantizers, loudness=None).tokens
        if not self.config.quantized:
            return np.array(tokens)
        codes = tokens.astype(np.int32)
        return Tokens(np.asarray(_embed(self.params, codes)), codes)

    def save_audio(self, path: str | Path, audio: Float[Array | np.ndarray, "*c n"]) -> None:
        """Writes what `decode` gave, rows as channels, as .wav, .flac, .ogg or .mp3; beyond full scale it is cut."""
        samples = _checked(np.atleast_2d(audio), 2, "audio must be (channels, samples)")
        write_sound(path, [samples], self.sample_rate, len(samples), samples.shape[1])

    def save_tokens(self, path: str | Path, tokens: Array | np.ndarray) -> None:
        """Writes codes (c, q, t), or latents (c, t, d) of DACVAE, as .npz, .safetensors or (codes) .dac."""
        encoded = Encoded(tokens=np.asarray(tokens), codec_id=self.codec_id, weights_hash=self.weights_hash)
        self._check_tokens(encoded)
        length = self.config.output_samples(encoded.frames)
        save_encoded(path, replace(encoded, sample_rate=self.sample_rate, original_length=length))

    def load_tokens(self, path: str | Path) -> np.ndarray:
        """Codes or latents that `save_tokens` or `compress` wrote; ValueError where they are another codec's."""
        encoded = load_encoded(path)
        try:
            self._check_tokens(encoded)
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
        """A recording's tokens (codes of DAC, posterior means of DACVAE), loudness, rate, length and channels.

        `decompress` restores it; tokens.save_encoded writes what comes. With `loudness` (LUFS) the recording is first
        brought to that level, or as near as the peak of 1 allows, and is read twice. Errors as `SoundFile`.
        """
        sound = SoundFile(path)
        gain, measured = 1.0, None
        if loudness is not None:
            meter = measured_loudness(sound.blocks(self.sample_rate), self.sample_rate, sound.channels)
            measured = meter.loudness()
            gain = 1.0 if measured <= SILENT_LUFS else 10.0 ** ((loudness - measured) / 20.0)
            gain = min(gain, 1.0 / max(meter.peak, 1e-9))
        widths = (self.window_frames,)
        stream = EncoderStream(self.params, self.config, sound.channels, widths, self.check_quantizers(n_quantizers))
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
        """The recording of `compress`, or of a file of its tokens (.dac of descript-audio-codec too), and its rate."""
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
        """Writes the recording of `compress`, of any length; gives the samples of a channel."""
        rate, channels = encoded.sample_rate or self.sample_rate, len(encoded.tokens)
        blocks = self._restored_blocks(encoded, n_quantizers, progress)
        return write_sound(path, blocks, rate, channels, encoded.original_length or 0, mp3_rate)

    def decoded_blocks(
        self, encoded: Encoded, n_quantizers: int | None = None, message: np.ndarray | None = None
    ) -> Iterator[Block]:
        """The sound of tokens, window by window, at the codec's rate and level. ValueError for those of another codec.

        `message` (bits,) of 0 and 1 is laid under every channel as a watermark.
        """
        self._check_tokens(encoded)
        n_quantizers = self.check_quantizers(n_quantizers)
        if encoded.chunk_length is not None:
            yield from self._chunks(encoded, n_quantizers)
            return
        rows = len(encoded.tokens)
        messages = None if message is None else self.check_message(np.tile(message, (rows, 1)), rows)
        stream = DecoderStream(self.params, self.config, rows, (self.window_frames,), messages)
        for start in range(0, encoded.frames, self.window_frames):
            part = np.s_[start : start + self.window_frames]
            piece = encoded.tokens[:, :n_quantizers, part] if encoded.are_codes else encoded.tokens[:, part]
            yield stream.push(np.ascontiguousarray(piece))
        yield stream.finish()

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

    def _restored_blocks(
        self, encoded: Encoded, n_quantizers: int | None, progress: Progress = lambda seconds: None
    ) -> Iterator[Block]:
        """The recording as it was: loudness, rate and length. What is decoded waits in a file for its level."""
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
            yield np.zeros((channels, left), np.float32)  # DAC at 16 and 24 kHz decodes to 8 samples less

    def _check_tokens(self, encoded: Encoded) -> None:
        """ValueError where tokens are of another codec, by its name or by what they look like."""
        if encoded.weights_hash is not None and encoded.weights_hash != self.weights_hash:
            name = encoded.codec_id or "another codec"
            raise ValueError(
                f"the tokens are of {name}, weights {encoded.weights_hash[:12]}, not of codec {self.codec_id}"
            )
        if encoded.are_codes != self.config.quantized:
            kind = "codes" if encoded.are_codes else "latents"
            raise ValueError(
                f"the tokens are {kind}, which codec {self.codec_id} does not take: name the one that made them"
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
                f"the tokens are of {tokens.shape[1]} codebooks, {tokens.min()} to {tokens.max()}: "
                f"codec {self.codec_id} has {config.n_codebooks} of {config.codebook_size}"
            )

    def _collect(self, spool: Spool, outputs: tuple[np.ndarray, np.ndarray]) -> None:
        first, second = outputs
        spool.append(second.swapaxes(1, 2).astype(np.uint16) if self.config.quantized else first)

    def _chunks(self, encoded: Encoded, n_quantizers: int | None) -> Iterator[Block]:
        """Each chunk by itself and without padding: how descript-audio-codec encodes what is longer than a window."""
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
        return numbers[:, : self.check_quantizers(n_quantizers)].astype(np.int32)

    def check_quantizers(self, count: int | None) -> int | None:
        """The number of codebooks to use, which ValueError refuses where there are fewer, or none at all."""
        if count is not None and not self.config.quantized:
            raise self._no_codebooks()
        if count is not None and not 1 <= count <= self.config.n_codebooks:
            raise ValueError(
                f"n_quantizers {count}: codec {self.codec_id} has codebooks 1 to {self.config.n_codebooks}"
            )
        return count

    def check_message(self, watermark: Any, batch: int) -> np.ndarray:
        """A watermark's message for each row as int32; ValueError where it is none, or the codec has no watermark."""
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
