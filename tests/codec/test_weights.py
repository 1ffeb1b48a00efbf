"""Weights: folding against PyTorch, files bit by bit, one hash for all formats, refusals by name."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from echotts.codec import Codec, load_codec, save_codec
from echotts.codec.published import fold, read_published
from echotts.codec.weights import flatten, hash_weights, read_codec, unflatten
from tests.codec.conftest import TINY
from tests.dacvae_golden import filled

torch = pytest.importorskip("torch")

SMALL = {
    "encoder_dim": 4,
    "encoder_rates": [2, 4],
    "latent_dim": 6,
    "decoder_dim": 16,
    "decoder_rates": [4, 2],
    "codebook_dim": 3,
    "n_codebooks": 16,
    "quantizer_dropout": False,
    "sample_rate": 8000,
}


def small_state(new_names: bool = False) -> dict[str, np.ndarray]:
    """A published state of two blocks, without a watermark."""
    state: dict[str, np.ndarray] = {}

    def conv(key: str, *shape: int, up: bool = False) -> None:
        names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
        gain, direction = names if new_names else ("weight_g", "weight_v")
        for name, size in ((gain, (shape[0], 1, 1)), (direction, shape), ("bias", (shape[1] if up else shape[0],))):
            state[f"{key}.{name}"] = filled(f"{key}.{name}", size, 0) + 0.01

    def unit(key: str, width: int) -> None:
        for part, kernel in ((1, 7), (3, 1)):
            state[f"{key}.block.{part - 1}.alpha"] = filled("alpha", (1, width, 1), part)
            conv(f"{key}.block.{part}", width, width, kernel)

    conv("encoder.block.0", 4, 1, 7)
    for block, (width, stride) in enumerate(((4, 2), (8, 4)), 1):
        for n in range(3):
            unit(f"encoder.block.{block}.block.{n}", width)
        state[f"encoder.block.{block}.block.3.alpha"] = filled("alpha", (1, width, 1), 5)
        conv(f"encoder.block.{block}.block.4", 2 * width, width, 2 * stride)
    state["encoder.block.3.alpha"] = filled("alpha", (1, 16, 1), 6)
    conv("encoder.block.4", 6, 16, 3)
    conv("quantizer.in_proj", 6, 6, 1)
    conv("quantizer.out_proj", 6, 3, 1)
    conv("decoder.model.0", 16, 6, 7)
    for block, (width, stride) in enumerate(((16, 4), (8, 2)), 1):
        state[f"decoder.model.{block}.block.0.alpha"] = filled("alpha", (1, width, 1), 7)
        conv(f"decoder.model.{block}.block.1", width, width // 2, 2 * stride, up=True)
        for n in (4, 5, 8):
            unit(f"decoder.model.{block}.block.{n}", width // 2)
    state["decoder.wm_model.encoder_block.pre.0.alpha"] = filled("alpha", (1, 4, 1), 8)
    conv("decoder.wm_model.encoder_block.pre.1", 1, 4, 7)
    return state


def write(path: Path, state: dict[str, np.ndarray], kwargs: Any = SMALL, bare: bool = False) -> Path:
    tensors = OrderedDict((key, torch.from_numpy(value)) for key, value in state.items())
    torch.save(tensors if bare else {"state_dict": tensors, "metadata": {"kwargs": kwargs}}, path)
    return path


def test_folding_equals_torch():
    rng = np.random.default_rng(0)
    for shape in ((6, 5, 7), (1, 9, 3), (4, 8, 1)):
        gain, direction = rng.standard_normal((shape[0], 1, 1)), rng.standard_normal(shape)
        gain, direction = gain.astype(np.float32), direction.astype(np.float32)
        wanted = torch._weight_norm(torch.from_numpy(direction), torch.from_numpy(gain), 0).numpy()
        np.testing.assert_allclose(fold(gain, direction), wanted, rtol=2e-6)


def test_sizes_come_from_the_file_and_both_weight_norm_namings_are_read(tmp_path: Path):
    params, config = read_published(write(tmp_path / "old.pth", small_state()))
    assert (config.codebook_dim, config.hop_length, config.sample_rate) == (3, 8, 8000)
    state = small_state()
    renamed = {
        key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for key, value in state.items()
    }
    again, _ = read_published(write(tmp_path / "new.pth", renamed))
    assert hash_weights(again) == hash_weights(params)
    kernel = params["decoder"]["blocks"][0]["up"]["kernel"]
    gain, direction = (state[f"decoder.model.1.block.1.weight_{kind}"] for kind in "gv")
    wanted = torch._weight_norm(torch.from_numpy(direction), torch.from_numpy(gain), 0).numpy()
    np.testing.assert_allclose(kernel, wanted.transpose(2, 0, 1), rtol=2e-6)


def test_a_bare_state_dict_has_the_published_sizes(tmp_path: Path):
    with pytest.raises(ValueError, match=r"encoder\.block\.0\.weight_g has shape \(4, 1, 1\), .* \(64, 1, 1\)"):
        read_published(write(tmp_path / "bare.pth", small_state(), bare=True))


def test_safetensors_keep_every_bit_and_the_hash(tmp_path: Path, tiny: Codec):
    path = tmp_path / "tiny.safetensors"
    save_codec(path, tiny.params, tiny.config, "org/tiny")
    params, config, codec_id = read_codec(path)
    assert (config, codec_id) == (TINY, "org/tiny")
    for (name, ours), (other, theirs) in zip(flatten(params), flatten(tiny.params), strict=True):
        assert name == other
        np.testing.assert_array_equal(ours, theirs)
    assert load_codec(path).weights_hash == tiny.weights_hash
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.safetensors"]


def test_the_hash_of_a_pth_is_that_of_its_safetensors(tmp_path: Path):
    published = load_codec(write(tmp_path / "weights.pth", small_state()))
    save_codec(tmp_path / "codec.safetensors", published.params, published.config, published.codec_id)
    assert load_codec(tmp_path / "codec.safetensors").weights_hash == published.weights_hash
    assert published.codec_id == "weights"


def test_half_precision_is_stored_and_float32_is_used(tmp_path: Path, tiny: Codec):
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save_codec(whole, tiny.params, tiny.config, "tiny")
    save_codec(half, tiny.params, tiny.config, "tiny", dtype="float16")
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    loaded = load_codec(half)
    assert {leaf.dtype.name for _, leaf in flatten(loaded.params)} == {"float32"}
    assert loaded.weights_hash != tiny.weights_hash
    assert load_codec(half).weights_hash == loaded.weights_hash


def test_a_tree_survives_its_names():
    tree = {"a": [{"b": 1}, {"b": 2}], "c": {"d": 3}}
    assert unflatten({name: value.item() for name, value in flatten(tree)}) == tree


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder.block.4.bias": None}, r"tensor encoder\.block\.4\.bias is missing"),
        ({"encoder.block.0.weight_v": np.zeros((4, 1, 5), np.float32)}, r"encoder\.block\.0\.weight_v has shape"),
        ({"encoder.block.0.bias": np.full(4, np.inf, np.float32)}, r"encoder\.block\.0\.bias is not made of finite"),
        (
            {"quantizer.quantizers.0.codebook.weight": np.zeros((2, 3), np.float32)},
            r"decoder\.model\.1\.block\.2\.block\.0\.alpha is missing",
        ),
    ],
)
def test_files_of_another_shape_are_refused_by_tensor(tmp_path: Path, change: dict[str, Any], words: str):
    state = {key: value for key, value in (small_state() | change).items() if value is not None}
    with pytest.raises(ValueError, match=words) as caught:
        read_published(write(tmp_path / "odd.pth", state))
    assert str(caught.value).startswith(f"{tmp_path / 'odd.pth'}: ")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"encoder_dim": 1 << 40}, "encoder_dim must be an integer"),
        ({"encoder_rates": "2,8"}, "encoder_rates must be a list"),
        ({"encoder_rates": [2] * 1000}, "encoder_rates must be a list"),
        ({"decoder_rates": [4, 4]}, "differ in hop"),
        ({"sample_rate": True}, "sample_rate must be an integer"),
        ([1, 2], "not a dict"),
    ],
)
def test_absurd_arguments_in_the_file_are_refused(tmp_path: Path, kwargs: Any, words: str):
    merged = SMALL | kwargs if isinstance(kwargs, dict) else kwargs
    with pytest.raises(ValueError, match=words):
        read_published(write(tmp_path / "odd.pth", small_state(), merged))


def test_damaged_and_foreign_safetensors_are_refused(tmp_path: Path, tiny: Codec):
    good = tmp_path / "good.safetensors"
    save_codec(good, tiny.params, tiny.config, "tiny")
    tensors, whole = load_file(good), good.read_bytes()
    header = {"format": "echotts.codec", "kind": "dacvae", "config": "{}"}
    bad = tmp_path / "bad.safetensors"

    def refused(words: str) -> None:
        with pytest.raises(ValueError, match=words) as caught:
            read_codec(bad)
        assert "\n" not in str(caught.value)

    bad.write_bytes(whole[: len(whole) // 2])
    refused("damaged")
    bad.write_bytes(b"hello")
    refused("damaged")
    save_file(tensors, bad)
    refused("not an echotts codec")
    save_file(tensors, bad, metadata=header | {"config": "[]"})
    refused("Expected object, got array")
    save_file(tensors, bad, metadata=header)
    refused("its config requires")
    config = '{"encoder_dim": 4, "encoder_rates": [2, 3, 4], "latent_dim": 8, "decoder_dim": 32, '
    config += '"decoder_rates": [4, 3, 2], "codebook_dim": 5, "sample_rate": 8000}'
    header["config"] = config
    save_file({name: tensor for name, tensor in tensors.items() if name != "encoder.snake"}, bad, metadata=header)
    refused("encoder.snake is missing")
    save_file({k: v for k, v in tensors.items() if k != "watermark.up.0.unit.wide.bias"}, bad, metadata=header)
    refused("watermark.up.0.unit.wide.bias is missing")
    save_file(tensors | {"extra": np.zeros(2, np.float32)}, bad, metadata=header)
    refused("unknown tensor extra")
    save_file(tensors | {"encoder.snake": np.full(32, np.nan, np.float32)}, bad, metadata=header)
    refused("encoder.snake is not made of finite")
    save_file(tensors | {"encoder.snake": np.zeros(32, np.int32)}, bad, metadata=header)
    refused("encoder.snake is not made of finite")
    narrow = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    save_file(narrow, bad, metadata=header)
    assert read_codec(bad)[1] == TINY
