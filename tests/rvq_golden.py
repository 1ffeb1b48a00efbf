"""The golden vectors of DAC (tests/golden/README_dacvae.md), and the published layout filled as theirs was."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.dacvae_golden import filled

GOLDEN = Path(__file__).parent / "golden"

KWARGS: dict[str, dict[str, Any]] = {
    name: {
        "encoder_dim": 64,
        "encoder_rates": rates,
        "latent_dim": latent_dim,
        "decoder_dim": 1536,
        "decoder_rates": rates[::-1],
        "n_codebooks": n_codebooks,
        "codebook_size": 1024,
        "codebook_dim": 8,
        "quantizer_dropout": 0.5,
        "sample_rate": sample_rate,
    }
    for name, rates, latent_dim, n_codebooks, sample_rate in (
        ("44khz", [2, 4, 8, 8], 1024, 9, 44100),
        ("44khz_16kbps", [2, 4, 8, 8], 128, 18, 44100),
        ("24khz", [2, 4, 5, 8], 1024, 32, 24000),
        ("16khz", [2, 4, 5, 8], 1024, 12, 16000),
    )
}


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"rvq_{name}_s0.npz") as file:
        return dict(file)


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published file and its shape."""
    manifest = json.loads((GOLDEN / f"rvq_{name}_manifest.json").read_text())
    return {key: tuple(shape) for key, shape in manifest.items()}


def filled_weights(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    return {key: filled(key, shape, seed) for key, shape in shapes(name).items()}
