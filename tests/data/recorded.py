"""Recordings for the tests of preparation: tones on disk, and a codec that is small, real and fast.

Run as a program it prepares a folder slowly, for the test that kills it.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

RATE, HOP, CODEC_CHANNELS = 16000, 640, 4


class CosineCodec:
    """The lowest cosines of each hop as latents: deterministic, exact at any length, and it can be inverted roughly."""

    sample_rate, hop_length, latent_channels = RATE, HOP, CODEC_CHANNELS
    codec_id, weights_hash = "cosine", "c0ffee"

    def __init__(self, log: Path | None = None, delay_s: float = 0.0) -> None:
        self.log, self.delay_s = log, delay_s
        phase = (np.arange(HOP) + 0.5)[:, None] * np.arange(CODEC_CHANNELS) * np.pi / HOP
        self.basis = (np.cos(phase) / HOP).astype(np.float32)

    def encode(self, audio: np.ndarray) -> np.ndarray:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{audio.shape}\n")
        time.sleep(self.delay_s)
        rows, samples = audio.shape
        padded = np.pad(audio, ((0, 0), (0, -samples % HOP)))
        return padded.reshape(rows, -1, HOP) @ self.basis

    def decode(self, latent: np.ndarray) -> np.ndarray:
        return (latent @ (self.basis.T * HOP)).reshape(len(latent), -1)

    def decode_blocks(self, latent: np.ndarray) -> Iterator[np.ndarray]:
        yield self.decode(latent)

    def silence_latent(self, frames: int) -> np.ndarray:
        return np.zeros((frames, CODEC_CHANNELS), np.float32)


def tone(seconds: float, pitch_hz: float = 220.0, level: float = 0.1) -> np.ndarray:
    clock = np.arange(round(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * pitch_hz * clock)).astype(np.float32)


def write_clips(folder: Path, count: int, rate: int = RATE, suffix: str = ".wav") -> list[str]:
    """Clips of 0.6 to 2 seconds in folder/wavs; gives their names without the suffix."""
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    names = [f"LJ-{i:03d}" for i in range(count)]
    for i, name in enumerate(names):
        soundfile.write(folder / "wavs" / f"{name}{suffix}", tone(0.6 + (i * 7 % 15) / 10, 110 + 10 * i), rate)
    return names


def write_ljspeech(folder: Path, count: int) -> None:
    lines = [f"{name}|It's \"{i}\".|It's number {i}." for i, name in enumerate(write_clips(folder, count))]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    from echotts.data.prepare.pipeline import Settings, prepare

    source, output, log = sys.argv[1:]
    prepare(source, Path(output), CosineCodec(Path(log), delay_s=0.05), Settings(shard_samples=40))
