"""The BlockDiT golden vectors (tests/golden/README_blockdit.md) and models filled as theirs were."""

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from echotts.checkpoint.interop import params_from_published, published_shapes
from echotts.config import EncoderConfig, ModelConfig
from echotts.model import BlockDiT, Params, build
from echotts.model.parameters import unflatten

GOLDEN = Path(__file__).parent / "golden"
ATOL = 1e-4
RELATIVE_RMS = 1e-5


class Golden:
    """One npz file: `golden["in_x"]`, its model config and its extra facts."""

    def __init__(self, name: str):
        with np.load(GOLDEN / f"blockdit_{name}.npz") as arrays:
            self.arrays = dict(arrays)
        self.meta: dict[str, Any] = json.loads(str(self.arrays.get("meta_json", "{}")))

    def __getitem__(self, name: str) -> Any:
        return jnp.asarray(self.arrays[name])

    @property
    def config(self) -> ModelConfig:
        return config_of(json.loads(str(self.arrays["config_json"])))

    def params(self) -> Params:
        return filled_params(self.config, int(self.arrays["param_seed"]))

    def model(self) -> BlockDiT:
        return build(self.config, jax.tree.map(jnp.asarray, self.params()))

    def conditions(self) -> tuple[Any, Any, Any, Any]:
        """The four condition inputs, in the order the model takes them."""
        return (
            self["in_text_input_ids"],
            self["in_text_mask"].astype(bool),
            self["in_speaker_latent"].astype(jnp.float32),
            self["in_speaker_mask"].astype(bool),
        )


def config_of(sizes: dict[str, Any]) -> ModelConfig:
    """The golden files' names of sizes -> ours; float32."""
    return ModelConfig(
        latent_channels=sizes["latent_size"],
        width=sizes["model_size"],
        depth=sizes["num_layers"],
        heads=sizes["num_heads"],
        mlp_width=sizes["intermediate_size"],
        text=EncoderConfig(
            width=sizes["text_model_size"],
            depth=sizes["text_num_layers"],
            heads=sizes["text_num_heads"],
            mlp_width=sizes["text_intermediate_size"],
        ),
        speaker=EncoderConfig(
            width=sizes["encoder_model_size"],
            depth=sizes["encoder_num_layers"],
            heads=sizes["encoder_num_heads"],
            mlp_width=sizes["encoder_intermediate_size"],
        ),
        vocabulary=sizes["text_vocab_size"],
        patch=sizes["encoder_patch_size"],
        timestep_width=sizes["timestep_embed_size"],
        adaln_rank=sizes["adaln_rank"],
        norm_eps=sizes["norm_eps"],
        compute_dtype="float32",
    )


def filled_params(config: ModelConfig, seed: int) -> Params:
    """Every parameter a function of its published path, its shape and the seed."""
    filled = {path: _fill(path, shape, seed) for path, shape in published_shapes(config).items()}
    return params_from_published(unflatten(filled))


def assert_golden(actual: Any, expected: Any) -> None:
    """The stated tolerance: absolute 1e-4 and relative RMS 1e-5."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ATOL)
    assert relative_rms(actual, expected) <= RELATIVE_RMS


def relative_rms(actual: Any, expected: Any) -> float:
    """RMS of the difference divided by RMS of the expected values."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


def _fill(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    z = np.random.default_rng([zlib.crc32(path.encode()), seed]).standard_normal(shape)
    scale = {"kernel": shape[0] ** -0.5, "embedding": 1.0, "bias": 0.1, "weight": 0.1}
    name = path.rpartition("/")[2]
    return (z * scale[name] + (name == "weight")).astype(np.float32)
