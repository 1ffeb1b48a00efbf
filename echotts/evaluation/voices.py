"""Speaker embeddings of Resemblyzer, to compare voices.

The network (three LSTM layers over a mel spectrogram, resemble-ai/Resemblyzer, Apache-2.0) is reimplemented here, so
that only the weights inside its wheel are needed and none of its dependencies (torch, librosa, webrtcvad). The weights
are a legacy torch file; only that of version 0.1.4 is accepted, and nothing in it can be executed.
"""

import importlib.util
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from echotts.audio import Samples, resample, trim_silence
from echotts.files import sha256_file
from echotts.spectrogram import mel_filters

RATE_HZ = 16000
MELS = 40
WINDOW_SAMPLES = 400  # 25 ms
STEP_SAMPLES = 160  # 10 ms
PART_FRAMES = 160  # 1.6 s, the network's input length
PARTS_PER_SECOND = 1.3
MIN_COVERAGE = 0.75
LEVEL_DB = -30.0
LAYERS = 3
BATCH = 32
INSTALL_HINT = "pip install --no-deps resemblyzer==0.1.4"
WEIGHTS_SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"  # of version 0.1.4

Embedding = Float[np.ndarray, " e"]


class VoiceEncoder:
    """Maps recordings to unit vectors. Cosine similarity is about 0.9 for the same voice, 0.4 to 0.8 for two."""

    def __init__(self, weights: Path | None = None) -> None:
        self._weights = read_legacy_weights(weights or find_weights())
        self._filters = mel_filters(WINDOW_SAMPLES, MELS, RATE_HZ)

    def embed(self, recordings: Sequence[tuple[Samples, int]]) -> Float[np.ndarray, "b e"]:
        """One embedding per (samples, rate); all zeros for silence."""
        parts, owners = [], []
        for owner, (samples, rate) in enumerate(recordings):
            speech = trim_silence(resample(samples, rate, RATE_HZ), RATE_HZ)
            if len(speech):
                mels = self._parts(_at_level(speech))
                parts.append(mels)
                owners += [owner] * len(mels)
        width = len(self._weights["linear.bias"])
        sums = np.zeros((len(recordings), width), np.float64)
        if parts:
            np.add.at(sums, np.asarray(owners), self._embed_parts(np.concatenate(parts)))
        return _unit(sums)

    def _parts(self, speech: Samples) -> Float[np.ndarray, "p f m"]:
        """Overlapping parts of the mel spectrogram, cut as Resemblyzer does."""
        frames = -(-(len(speech) + 1) // STEP_SAMPLES)
        step = round(RATE_HZ / PARTS_PER_SECOND / STEP_SAMPLES)
        starts = list(range(0, max(1, frames - PART_FRAMES + step + 1), step))
        covered = (len(speech) - starts[-1] * STEP_SAMPLES) / (PART_FRAMES * STEP_SAMPLES)
        if covered < MIN_COVERAGE and len(starts) > 1:
            starts.pop()
        padding = max(0, (starts[-1] + PART_FRAMES) * STEP_SAMPLES - len(speech))
        mel = mel_spectrogram(np.pad(speech, (0, padding)), self._filters)
        return np.stack([mel[start : start + PART_FRAMES] for start in starts])

    def _embed_parts(self, mels: Float[np.ndarray, "p f m"]) -> Float[np.ndarray, "p e"]:
        """Runs the network in batches of BATCH parts, so that one shape is compiled."""
        padded = np.pad(mels, ((0, -len(mels) % BATCH), (0, 0), (0, 0)))
        batches = [run_network(self._weights, padded[start : start + BATCH]) for start in range(0, len(padded), BATCH)]
        return np.concatenate([np.asarray(batch) for batch in batches])[: len(mels)]


@jax.jit
def run_network(weights: dict[str, Array], mels: Float[Array, "p f m"]) -> Float[Array, "p e"]:
    """Three LSTM layers, then the last state through a linear layer and ReLU, scaled to unit length."""
    sequence = jnp.swapaxes(mels, 0, 1)  # frames first, for the scan
    for layer in range(LAYERS):
        sequence = _lstm(weights, layer, sequence)
    embedded = jax.nn.relu(sequence[-1] @ weights["linear.weight"].T + weights["linear.bias"])
    return embedded / jnp.maximum(jnp.linalg.norm(embedded, axis=-1, keepdims=True), 1e-9)


def _lstm(weights: dict[str, Array], layer: int, sequence: Float[Array, "f p i"]) -> Float[Array, "f p h"]:
    """One layer. Gates are in torch's order: input, forget, candidate, output; the two bias vectors are summed."""
    recurrent = weights[f"lstm.weight_hh_l{layer}"].T
    bias = weights[f"lstm.bias_ih_l{layer}"] + weights[f"lstm.bias_hh_l{layer}"]
    start = jnp.zeros((sequence.shape[1], len(recurrent)))

    def step(carry: tuple[Array, Array], from_input: Array) -> tuple[tuple[Array, Array], Array]:
        state, cell = carry
        enter, forget, candidate, leave = jnp.split(from_input + state @ recurrent, 4, axis=-1)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
        state = jax.nn.sigmoid(leave) * jnp.tanh(cell)
        return (state, cell), state

    _, states = jax.lax.scan(step, (start, start), sequence @ weights[f"lstm.weight_ih_l{layer}"].T + bias)
    return states


def centroids(embeddings: Float[np.ndarray, "b e"], voices: Sequence[str]) -> dict[str, Embedding]:
    """The mean of each voice's embeddings, scaled to unit length."""
    return {
        voice: _unit(embeddings[[i for i, name in enumerate(voices) if name == voice]].mean(axis=0))
        for voice in sorted(set(voices))
    }


def nearest_voice(embedding: Embedding, known: Mapping[str, Embedding]) -> str | None:
    """The known voice with the highest cosine similarity; None for silence (the zero embedding)."""
    if not embedding.any():
        return None
    return max(known, key=lambda voice: float(embedding @ known[voice]))


def mel_spectrogram(speech: Samples, filters: Float[np.ndarray, "k m"]) -> Float[np.ndarray, "f m"]:
    """Power mel spectrogram (not logarithmic), one row per 10 ms, with windows centred on their row."""
    padded = np.pad(speech, WINDOW_SAMPLES // 2)
    window = np.hanning(WINDOW_SAMPLES + 1)[:-1].astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW_SAMPLES)[::STEP_SAMPLES] * window
    power = np.square(np.abs(np.fft.rfft(frames, axis=1))).astype(np.float32)
    return power @ filters


def find_weights() -> Path:
    """The weights file in the installed Resemblyzer package, without importing it; ModuleNotFoundError without it."""
    package = importlib.util.find_spec("resemblyzer")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            f"voice similarity needs the weights in the Resemblyzer package (nothing else of it): {INSTALL_HINT}"
        )
    return Path(package.origin).with_name("pretrained.pt")


def read_legacy_weights(path: Path) -> dict[str, np.ndarray]:
    """`model_state` of a legacy torch file: five pickles, then each storage as a count and raw float32."""
    if sha256_file(path) != WEIGHTS_SHA256:
        raise ValueError(f"{path}: not the weights file of Resemblyzer 0.1.4: {INSTALL_HINT}")
    with path.open("rb") as file:
        for _ in ("magic number", "protocol", "word sizes"):
            _next_pickle(file)
        state = _next_pickle(file)["model_state"]
        storages = {}
        for key in _next_pickle(file):
            count = int.from_bytes(file.read(8), "little")
            storages[key] = np.frombuffer(file.read(4 * count), "<f4")
    return {
        name: storages[key][offset : offset + math.prod(shape)].reshape(shape)
        for name, (key, offset, shape) in state.items()
    }


class _Tensors(pickle.Unpickler):
    """Unpickles ordered dictionaries and float tensors, and refuses every other class."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "FloatStorage"): "float32",
            ("torch._utils", "_rebuild_tensor_v2"): lambda key, offset, shape, *_: (key, offset, shape),
        }
        if (module, name) not in allowed:
            raise ValueError(f"the weights file refers to {module}.{name}, which is refused")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return pid[2]


def _next_pickle(file: BinaryIO) -> Any:
    """Reads the next pickle of a file with several."""
    return _Tensors(file).load()


def _at_level(speech: Samples) -> Samples:
    """Amplified to -30 dB RMS; louder speech is unchanged."""
    rms = np.sqrt(np.mean(np.square(speech, dtype=np.float64)))
    return (speech * max(1.0, 10.0 ** (LEVEL_DB / 20.0) / rms)).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(norms == 0.0, 1.0, norms)).astype(np.float32)
