"""Class Codec: encodes and decodes arrays and files of any length with the weights of one file."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float

from echotts.audio import MP3_RATE_KBPS
from echotts.codec.arrays import ArrayCodec, Tokens, checked_array
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
from echotts.codec.windows import DecoderStream, EncoderStream

_embed = jax.jit(embed)
LOUDNESS_LUFS = -16.0  # of a recording that `compress` encodes
Progress = Callable[[float], None]
"""Called periodically with the number of further seconds of audio processed."""


class Codec(ArrayCodec):
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
        samples = checked_array(np.atleast_2d(audio), 2, "audio must be (channels, samples)")
        write_sound(path, [samples], self.sample_rate, len(samples), samples.shape[1])

    def save_tokens(self, path: str | Path, tokens: Array | np.ndarray) -> None:
        """Writes codes (c, q, t) or DACVAE latents (c, t, d) as .npz or .safetensors; codes also as .dac."""
        encoded = Encoded(tokens=np.asarray(tokens), codec_id=self.codec_id, weights_hash=self.weights_hash)
        self.check_tokens(encoded)
        length = self.config.output_samples(encoded.frames)
        save_encoded(path, replace(encoded, sample_rate=self.sample_rate, original_length=length))

    def load_tokens(self, path: str | Path) -> np.ndarray:
        """Reads codes or latents written by `save_tokens` or `compress`; ValueError if another codec made them."""
        encoded = self.read_tokens(path)
        return encoded.tokens.astype(np.int32 if encoded.are_codes else np.float32)

    def read_tokens(self, path: str | Path) -> Encoded:
        """The same with what is needed to restore the recording."""
        encoded = load_encoded(path)
        try:
            self.check_tokens(encoded)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return encoded

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
