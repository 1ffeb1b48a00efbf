"""Fixtures of the codec tests: a tiny codec with a watermark, and the full-size one of the golden files."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from echotts.codec import Codec, CodecConfig, load_codec
from echotts.codec.backbone import init_params
from echotts.codec.layers import Params
from echotts.codec.watermark import init_watermark
from tests.dacvae_golden import KWARGS, filled_weights

TINY = CodecConfig(
    encoder_dim=4,
    encoder_rates=(2, 3, 4),
    latent_dim=8,
    decoder_dim=32,
    decoder_rates=(4, 3, 2),
    codebook_dim=5,
    sample_rate=8000,
)
TINY_DAC = dataclasses.replace(TINY, codebook_dim=3, n_codebooks=4, codebook_size=16)


def tiny_params(config: CodecConfig = TINY, seed: int = 0) -> Params:
    """Random parameters, biases and alphas too, so that padding done in the wrong place is seen."""
    rng = np.random.default_rng(seed)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: init_params(config, key))
    if not config.quantized:
        shapes["watermark"] = jax.eval_shape(lambda: init_watermark(key, (4, 6, 8), (2, 3), message_channels=8))

    def draw(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> np.ndarray:
        n = rng.standard_normal(shape.shape)
        if "snake" in str(path[-1]):
            value = np.exp(0.25 * n)
        elif len(shape.shape) == 1:
            value = 0.1 * n
        else:
            quiet = "point" in str(path) or "head" in str(path)  # as trained codecs are
            value = (0.3 if quiet else 1.0) * n / np.sqrt(math.prod(shape.shape[:-1]))
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="package")
def tiny() -> Codec:
    return Codec(tiny_params(), TINY, "tiny", window_frames=5)


@pytest.fixture(scope="package")
def tiny_dac() -> Codec:
    return Codec(tiny_params(TINY_DAC, seed=1), TINY_DAC, "tiny-dac", window_frames=5)


@pytest.fixture(scope="package")
def published_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A full-size weights.pth (430 MB) as the original writes it; removed after the run."""
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("published") / "weights.pth"
    state = {key: torch.from_numpy(tensor) for key, tensor in filled_weights(0).items()}
    torch.save({"state_dict": state, "metadata": {"kwargs": KWARGS}}, path)
    yield path
    path.unlink()


@pytest.fixture(scope="package")
def full(published_file: Path) -> Codec:
    """The full-size codec; a second at a time."""
    return load_codec(published_file, window_frames=25)


def with_config(**changes: object) -> CodecConfig:
    return dataclasses.replace(TINY, **changes)  # pyright: ignore[reportArgumentType]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
