"""A small random model and a linear codec: everything synthesis does, in a second."""

import numpy as np

from echotts.checkpoint.facts import Facts, Limits
from echotts.config import EncoderConfig, ModelConfig
from echotts.model.parameters import expected_shapes, unflatten
from echotts.synthesis import EchoTTS
from echotts.synthesis.synthesizer import Synthesizer

CHANNELS = 8
FRAMES, TOKENS, REFERENCE_FRAMES = 32, 24, 16
WINDOW_FRAMES = 4  # that the codec decodes at once

CONFIG = ModelConfig(
    latent_channels=CHANNELS,
    width=32,
    depth=2,
    heads=2,
    mlp_width=48,
    text=EncoderConfig(width=16, depth=1, heads=2, mlp_width=24),
    speaker=EncoderConfig(width=16, depth=1, heads=2, mlp_width=24),
    timestep_width=16,
    adaln_rank=8,
    compute_dtype="float32",
)
FACTS = Facts(
    buckets=Limits(frames=FRAMES, tokens=TOKENS, reference_frames=REFERENCE_FRAMES),
    tokenizer={"kind": "byte"},
    weights="ema",
    step=7,
)


class LinearCodec:
    """Eight orthonormal waveforms per frame of 40 ms; silence is a latent of ones."""

    sample_rate = 8000
    hop_length = 320
    latent_channels = CHANNELS
    codec_id = "linear"
    weights_hash = "00" * 32

    def __init__(self, channels: int = CHANNELS) -> None:
        self.latent_channels = channels
        rng = np.random.default_rng(0)
        self._basis = np.linalg.qr(rng.standard_normal((self.hop_length, channels)))[0]

    def encode(self, audio):
        audio = np.asarray(audio, np.float64)
        padded = np.pad(audio, ((0, 0), (0, -audio.shape[1] % self.hop_length)))
        return (padded.reshape(len(audio), -1, self.hop_length) @ self._basis + 1.0).astype(np.float32)

    def decode(self, latents):
        frames = (np.asarray(latents, np.float64) - 1.0) @ self._basis.T
        return (0.1 * frames.reshape(len(frames), -1)).astype(np.float32)

    def decode_blocks(self, latents):
        for start in range(0, len(latents[0]), WINDOW_FRAMES):
            yield self.decode(latents[:, start : start + WINDOW_FRAMES])

    def silence_latent(self, frames):
        return np.ones((frames, self.latent_channels), np.float32)


def random_params(config: ModelConfig = CONFIG):
    """Every parameter random, so that text, voice and time all reach the output (fresh ones start at zero)."""
    rng = np.random.default_rng(1)
    return unflatten(
        {
            path: (path.endswith("weight") + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)
            for path, leaf in expected_shapes(config).items()
        }
    )


def tiny_tts() -> EchoTTS:
    return EchoTTS(Synthesizer(random_params(), CONFIG, FACTS, LinearCodec()))
