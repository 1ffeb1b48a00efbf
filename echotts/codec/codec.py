"""The codec as the rest of the program uses it: arrays of any length in, arrays out, on the weights of one file."""

from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from echotts.codec.chunking import decode_windows, encode_windows, frame_noise
from echotts.codec.dacvae import CodecConfig
from echotts.codec.layers import Params
from echotts.codec.watermark import MESSAGE_BITS, add_watermark
from echotts.codec.weights import hash_weights, to_device

# Frames at a time. On a CPU about a second: small enough for the caches, large enough to amortise reading the weights.
_CPU_FRAMES = 20
ACCELERATOR_FRAMES = 100
_EDGE_FRAMES = 16  # more than any encoder of this family sees in one direction


class Codec:
    """A DACVAE: audio to latents and back, in windows that equal the whole.

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
        default = _CPU_FRAMES if jax.default_backend() == "cpu" else ACCELERATOR_FRAMES
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
        self, audio: Float[Array | np.ndarray, "b n"], key: PRNGKeyArray | None = None
    ) -> Float[np.ndarray, "b t c"]:
        """Latents of mono audio at `sample_rate`, -1..1, of any length; t = ceil(n / hop).

        The posterior mean; with a key, a sample of the posterior (the noise is a function of the key and the frame).
        The last frame is filled by reflecting the end of the audio; audio of half a frame or less is too short to be
        reflected and is filled with zeros. Resampling and loudness are the caller's. Raises ValueError without samples.
        """
        samples = _checked(audio, 2, "audio must be (batch, samples)")
        if not samples.shape[1]:
            raise ValueError("audio has no samples: give at least one")
        with jax.default_matmul_precision("highest"):
            mean, std = encode_windows(self.params, self.config, samples, self.window_frames)
        if key is None:
            return mean
        return mean + std * frame_noise(key, *mean.shape)

    def decode(
        self, latent: Float[Array | np.ndarray, "b t c"], watermark: Integer[Array | np.ndarray, "b bits"] | None = None
    ) -> Float[np.ndarray, "b n"]:
        """Audio of latents of any length; n = t * hop exactly. Clean audio is within -1..1.

        `watermark`, 16 bits 0 or 1 for each row, lays that message under the audio, which may then exceed 1 a little.
        Without it the audio is clean (the original implementation always adds a random message).
        """
        latents = _checked(latent, 3, f"latents must be (batch, frames, {self.latent_channels})")
        if latents.shape[2] != self.latent_channels:
            raise ValueError(
                f"latents have {latents.shape[2]} channels, codec {self.codec_id} has {self.latent_channels}"
            )
        message = None if watermark is None else self._message(watermark, latents.shape[0])
        with jax.default_matmul_precision("highest"):
            audio = decode_windows(self.params, self.config, latents, self.window_frames)
            if message is None or not audio.size:
                return audio
            return add_watermark(self.params["watermark"], audio, message, self.window_frames * self.hop_length)

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
