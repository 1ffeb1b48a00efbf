"""The DACVAE golden vectors (tests/golden/README_dacvae.md) and a published weights file filled as theirs was."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
KWARGS: dict[str, Any] = {
    "encoder_dim": 64,
    "encoder_rates": [2, 8, 10, 12],
    "latent_dim": 1024,
    "decoder_dim": 1536,
    "decoder_rates": [12, 10, 8, 2],
    "n_codebooks": 16,
    "codebook_size": 1024,
    "codebook_dim": 128,
    "quantizer_dropout": False,
    "sample_rate": 48000,
}


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"dacvae_{name}.npz") as file:
        return dict(file)


def filled_weights(seed: int) -> dict[str, np.ndarray]:
    """The published layout, every tensor filled by the golden files' formula."""
    manifest = json.loads((GOLDEN / "dacvae_manifest.json").read_text())
    return {key: filled(key, tuple(shape), seed) for key, shape in manifest.items()}


def filled(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    n = np.random.default_rng(zlib.crc32(f"{seed}:{key}".encode())).standard_normal(shape)
    last = key.rsplit(".", 1)[-1]
    if last == "alpha":
        value = np.exp(0.25 * n)
    elif last == "weight_g":
        value = gain(key, shape) * np.exp(0.1 * n)
    elif last == "weight_v":
        value = n
    elif last.startswith("bias"):
        value = 0.05 * n
    else:
        value = gain(key, shape) * n / np.sqrt(math.prod(shape[1:]))
    return value.astype(np.float32)


def gain(key: str, shape: tuple[int, ...]) -> float:
    main_block = key.startswith("decoder.model.") and key.count(".") == 5
    if key.endswith("weight_g") and shape[0] == 1:
        return 0.1
    if key.endswith(".block.3.weight_g"):
        return 0.3
    if main_block and key.endswith(".block.1.weight_g"):
        return 1.6
    if main_block and key.endswith(".block.3.weight"):
        return 2.0
    if key.endswith("weight") and len(shape) == 3 and shape[0] == 1:
        return 0.3
    return 1.0
