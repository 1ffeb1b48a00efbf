"""Published checkpoints in and out, and the export file."""

import collections
import json
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from echotts.checkpoint.interop import (
    infer_config,
    load_export,
    load_published,
    params_from_published,
    params_to_published,
    published_opt_state,
    save_export,
    save_published,
)
from echotts.model import Params
from echotts.model.parameters import flatten
from tests.blockdit_golden import Golden, assert_golden

METADATA = {
    "weights": "ema",
    "codec": {"id": "demo", "weights_hash": "ab" * 32, "sample_rate": 16000, "hop": 640, "channels": 128},
    "tokenizer": {"kind": "byte"},
    "step": 1500,
    "buckets": {"frames": 64, "tokens": 48, "reference_frames": 48},
}

# like optax's state: named tuples around the trees that matter
AdamState = collections.namedtuple("AdamState", ["count", "mu", "nu"])


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("tiny_forward")


@pytest.fixture(scope="module")
def params(golden: Golden) -> Params:
    return golden.params()


def assert_bitwise(actual: Any, expected: Any) -> None:
    actual, expected = flatten(actual), flatten(expected)
    assert actual.keys() == expected.keys()
    for path, leaf in expected.items():
        assert np.asarray(actual[path]).dtype == np.asarray(leaf).dtype
        np.testing.assert_array_equal(actual[path], leaf, err_msg=path)


def write_pickle(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def test_sizes_are_read_off_the_shapes(golden: Golden, params: Params):
    assert infer_config(params_to_published(params)) == golden.config
    medium = Golden("medium_forward")
    assert infer_config(params_to_published(medium.params())) == medium.config


def test_a_published_pickle_survives_the_round_trip_bit_by_bit(tmp_path: Path, golden: Golden, params: Params):
    mu, nu = jax.tree.map(lambda leaf: leaf * 2, params), jax.tree.map(np.square, params)
    path = tmp_path / "step_0000007.pkl"
    save_published(path, params, step=7, samples_seen=1792, opt_state=published_opt_state(7, mu, nu))
    published = load_published(path)
    assert (published.step, published.samples_seen, published.config) == (7, 1792, golden.config)
    assert_bitwise(published.params, params)
    for actual, expected in zip(published.moments(), (mu, nu), strict=True):
        assert_bitwise(actual, expected)
    again = tmp_path / "again.pkl"
    save_published(again, published.params, step=7, samples_seen=1792, opt_state=published.opt_state)
    assert again.read_bytes() == path.read_bytes()


def test_a_loaded_pickle_is_the_model(tmp_path: Path, golden: Golden, params: Params):
    path = write_pickle(tmp_path / "params.pkl", params_to_published(params))
    published = load_published(path)
    assert (published.step, published.opt_state, published.moments()) == (0, None, None)
    velocity = published.model(golden["in_x"], golden["in_t"], *golden.conditions())
    assert_golden(velocity, golden["out_velocity"])
    assert load_published(path, dtype="bfloat16").model.config.compute_dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["float16", jnp.bfloat16])
def test_a_half_precision_file_of_parameters_alone_loads_as_float32(tmp_path: Path, params: Params, dtype: Any):
    small = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), params)
    path = write_pickle(tmp_path / "small.pkl", {"params": params_to_published(small)})
    assert_bitwise(load_published(path).params, jax.tree.map(lambda leaf: leaf.astype(np.float32), small))


def test_moments_are_found_by_shape_whatever_holds_them(params: Params):
    from echotts.checkpoint.interop import find_moments

    trees = published_opt_state(3, params, jax.tree.map(np.square, params))
    boxed = jax.tree.map(lambda leaf: {"value": leaf, "names": ("embed",)}, trees["nu"])
    state = [[], {"0": AdamState(np.int32(3), trees["mu"], boxed), "1": [np.int32(3)]}]
    mu, nu = find_moments(state, infer_config(trees["mu"]))
    assert_bitwise(mu, params)
    assert_bitwise(nu, jax.tree.map(np.square, params))
    assert find_moments([[], np.int32(3)], infer_config(trees["mu"])) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.pop("in_proj"), "in_proj/kernel is missing"),
        (lambda tree: tree["TransformerBlock_1"].pop("mlp"), "TransformerBlock_1/mlp/w1/kernel .* is missing"),
        (lambda tree: tree.update(lora={"kernel": np.zeros(3)}), "1 tensors belong to no BlockDiT.*lora/kernel"),
        (lambda tree: tree["norm"].update(weight=np.zeros(3)), r"norm/weight has shape \(3,\)"),
    ],
)
def test_a_tree_that_is_no_blockdit_is_refused_by_tensor_name(params: Params, change: Any, message: str):
    tree = params_to_published(params)
    change(tree)
    with pytest.raises(ValueError, match=message):
        params_from_published(tree)


def test_a_pickle_of_something_else_is_refused_with_its_path(tmp_path: Path):
    for content in ([1, 2], {"params": 3}, {"params": {"a": np.zeros(2)}}):
        with pytest.raises(ValueError, match=r"other\.pkl: "):
            load_published(write_pickle(tmp_path / "other.pkl", content))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path):
    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    path = write_pickle(tmp_path / "hostile.pkl", {"params": Hostile()})
    with pytest.raises(ValueError, match=r"Path|getattr"):
        load_published(path)
    assert not (tmp_path / "owned").exists()


def test_an_export_holds_everything_inference_needs(tmp_path: Path, golden: Golden, params: Params):
    path = tmp_path / "model.safetensors"
    silence = np.arange(128, dtype=np.float32)[None]
    save_export(path, params, golden.config, METADATA | {"silence": silence})
    loaded, config, metadata = load_export(path)
    assert_bitwise(loaded, params)
    assert config == golden.config
    np.testing.assert_array_equal(metadata.pop("silence"), silence)
    assert metadata == METADATA
    with safe_open(path, framework="numpy") as file:  # what other tools see
        assert json.loads(file.metadata()["config"])["width"] == 64
        assert "blocks/attention/wq/kernel" in file.keys()  # noqa: SIM118 - not a dict


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_a_half_size_export_loads_as_float32(tmp_path: Path, golden: Golden, params: Params, storage: Any):
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save_export(whole, params, golden.config, METADATA)
    save_export(half, params, golden.config, METADATA, storage=storage)
    assert half.stat().st_size < 0.55 * whole.stat().st_size
    loaded, _, metadata = load_export(half)
    assert "silence" not in metadata
    assert_bitwise(loaded, jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(storage)).astype(np.float32), params))


def test_a_damaged_or_foreign_export_is_refused_in_one_line(tmp_path: Path, golden: Golden, params: Params):
    from safetensors.numpy import save_file

    whole = tmp_path / "model.safetensors"
    save_export(whole, params, golden.config, METADATA)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-1000])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": np.zeros(3)}, foreign)
    misfit = tmp_path / "misfit.safetensors"
    damaged = {**params, "norm": {"weight": np.zeros(3, np.float32)}}
    save_export(misfit, damaged, golden.config, METADATA)
    for path, message in ((cut, "not a whole export"), (foreign, "no export of echotts"), (misfit, "norm/weight")):
        with pytest.raises(ValueError, match=message) as caught:
            load_export(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load_export(tmp_path / "absent.safetensors")


def test_a_failed_save_leaves_no_file(tmp_path: Path, golden: Golden, params: Params):
    with pytest.raises(TypeError):
        save_export(tmp_path / "model.safetensors", params, golden.config, {"step": object()})
    assert list(tmp_path.iterdir()) == []
