"""The full-size codec against the golden vectors: decode, watermark, encode, and each stage on the way."""

import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from echotts.codec import Codec, layers
from echotts.codec.backbone import decode_frames, encode_frames
from echotts.codec.windows import encode_windows
from tests.compiling import as_users_compile
from tests.dacvae_golden import GOLDEN, arrays

AUDIO = 2e-5
LATENT = 3e-5


@pytest.fixture(scope="module", autouse=True)
def _as_users_compile() -> Iterator[None]:
    with as_users_compile():
        yield


@pytest.mark.parametrize("name", ["t1", "t7", "b2_t3", "t25"])
def test_decoded_audio_is_golden(full: Codec, name: str):
    golden = arrays(f"decode_{name}")
    assert_near(full.decode(golden["latent"]), golden["audio"], AUDIO)


@pytest.mark.parametrize("name", ["t1", "t7", "b2_t3", "t25"])
def test_watermarked_audio_is_golden(full: Codec, name: str):
    golden = arrays(f"decode_{name}")
    assert_near(full.decode(golden["latent"], watermark=golden["message"]), golden["audio_watermarked"], AUDIO)


@pytest.mark.parametrize("name", ["1s", "1s37"])
def test_posterior_mean_and_deviation_are_golden(full: Codec, name: str):
    golden = arrays(f"encode_{name}")
    pieces = list(encode_windows(full.encoding, full.config, golden["audio"], full.window_frames))
    mean, std = (np.concatenate(parts, axis=1) for parts in zip(*pieces, strict=True))
    assert_near(mean, golden["mean"], LATENT)
    assert_near(std, golden["std"], LATENT)
    assert_near(full.encode(golden["audio"]), golden["mean"], LATENT)


class Stages:
    """layers.py, recording each operation's output under the name of the corresponding published module."""

    def __init__(self, names: list[str]) -> None:
        self.seen: dict[str, jax.Array] = {}
        self._names = iter(names)

    def __getattr__(self, operation: str) -> Any:
        def apply(*arguments: Any) -> jax.Array:
            y = getattr(layers, operation)(*arguments)
            self.seen[next(self._names)] = y
            return y

        return apply


def stages(network: Any, codec: Codec, x: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    def run(params: layers.Params, x: jax.Array) -> dict[str, jax.Array]:
        ops = Stages(names)
        network(params, codec.config, x, ops)
        return ops.seen

    with jax.default_matmul_precision("highest"):
        return {name: np.asarray(y) for name, y in jax.jit(run)(codec.params, x).items()}


def test_each_stage_of_decoding_is_golden(full: Codec):
    names = ["out_proj", "decoder.model.0"]
    for block in range(1, 5):
        names += [f"up {block}", f"decoder.model.{block}"]
    seen = stages(decode_frames, full, arrays("decode_t7")["latent"], [*names, "head"])
    assert_stages(seen, "decode_t7", skipped=set())


def test_each_stage_of_encoding_is_golden(full: Codec):
    names = ["encoder.block.0"]
    for block in range(1, 5):
        names += [f"units {block}", f"encoder.block.{block}"]
    seen = stages(encode_frames, full, arrays("encode_1s")["audio"], [*names, "encoder.block.6", "in_proj"])
    assert_stages(seen, "encode_1s", skipped={"encoder.block.5"})


def assert_stages(seen: dict[str, np.ndarray], name: str, skipped: set[str]) -> None:
    golden = json.loads((GOLDEN / f"dacvae_{name}_stages.json").read_text())
    for stage in golden.keys() - skipped:
        assert_stage(seen[stage], golden[stage], stage)


def assert_stage(ours: np.ndarray, golden: dict[str, Any], name: str) -> None:
    channels_first = ours.transpose(0, 2, 1)
    assert list(channels_first.shape) == golden["shape"], name
    np.testing.assert_allclose(channels_first.mean(), golden["mean"], atol=1e-5, err_msg=name)
    np.testing.assert_allclose(channels_first.std(), golden["std"], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(channels_first[0, 0, :6], golden["first_channel0"], atol=3e-5, err_msg=name)
    np.testing.assert_allclose(channels_first[-1, -1, -6:], golden["last_channel"], atol=3e-5, err_msg=name)


def assert_near(ours: np.ndarray, golden: np.ndarray, tolerance: float) -> None:
    assert ours.dtype == np.float32
    assert ours.shape == golden.shape
    assert np.abs(ours - golden).max() <= tolerance
