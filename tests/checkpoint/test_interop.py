"""Published checkpoints in and out, and the export file."""

import collections
import dataclasses
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from safetensors import safe_open

from echotts.checkpoint.export_file import load_export, save_export
from echotts.checkpoint.facts import CodecFacts, Facts, Limits
from echotts.checkpoint.interop import (
    infer_config,
    load_published,
    params_from_published,
    params_to_published,
    published_opt_state,
    save_published,
)
from echotts.config import to_dict
from echotts.model import Params
from echotts.model.parameters import flatten
from tests.blockdit_golden import Golden, assert_golden

FACTS = Facts(
    weights="ema",
    codec=CodecFacts(id="demo", weights_hash="ab" * 32, sample_rate=16000, hop=640, channels=128),
    tokenizer={"kind": "byte"},
    step=1500,
    buckets=Limits(frames=64, tokens=48, reference_frames=48),
)

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
    opt_state = published_opt_state(7, *published.moments())
    save_published(again, published.params, step=7, samples_seen=1792, opt_state=opt_state)
    assert again.read_bytes() == path.read_bytes()


def test_the_optimizer_state_of_a_published_pickle_fits_its_optax_chain(tmp_path: Path, params: Params):
    """chain(clip, adamw(schedule, mask)), unpickled by Python as the published trainer does, no class of ours in it."""
    mu, nu = jax.tree.map(lambda leaf: leaf * 2, params), jax.tree.map(np.square, params)
    path = tmp_path / "step_0000007.pkl"
    save_published(path, params, step=7, samples_seen=1792, opt_state=published_opt_state(7, mu, nu))
    content = pickle.loads(path.read_bytes())
    decays = optax.adamw(lambda step: 1e-3, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), decays)
    fresh = optimizer.init(content["params"])
    assert jax.tree.structure(content["opt_state"]) == jax.tree.structure(fresh)
    assert [leaf.dtype for leaf in jax.tree.leaves(content["opt_state"])] == [x.dtype for x in jax.tree.leaves(fresh)]
    _, after = optimizer.update(content["params"], content["opt_state"], content["params"])
    assert optax.tree.get(after[1][0], "count") == 8 and after[1][2].count == 8
    assert b"echotts" not in path.read_bytes()


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

    trees = {"mu": params_to_published(params), "nu": params_to_published(jax.tree.map(np.square, params))}
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
        (lambda tree: tree.update(lora={"kernel": np.zeros(3)}), "1 tensors do not belong to a BlockDiT.*lora/kernel"),
        (lambda tree: tree["norm"].update(weight=np.zeros(3)), r"norm/weight has shape \(3,\)"),
    ],
)
def test_a_tree_that_is_not_a_blockdit_is_rejected_naming_the_tensor(params: Params, change: Any, message: str):
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
    facts = dataclasses.replace(FACTS, silence=[[float(channel) for channel in range(128)]])
    save_export(path, params, golden.config, facts)
    loaded, config, found = load_export(path)
    assert_bitwise(loaded, params)
    assert config == golden.config
    assert found == facts
    with safe_open(path, framework="numpy") as file:  # what other tools see
        header = {name: json.loads(text) for name, text in file.metadata().items()}
        assert header.pop("config")["width"] == 64
        assert header == FACTS.to_dict() | {"format": "echotts 1"}
        assert "blocks/attention/wq/kernel" in file.keys()  # noqa: SIM118 - not a dict


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_a_half_size_export_loads_as_float32(tmp_path: Path, golden: Golden, params: Params, storage: Any):
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save_export(whole, params, golden.config, FACTS)
    save_export(half, params, golden.config, FACTS, storage=storage)
    assert half.stat().st_size < 0.55 * whole.stat().st_size
    loaded, _, facts = load_export(half)
    assert facts.silence is None
    assert_bitwise(loaded, jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(storage)).astype(np.float32), params))


def test_a_damaged_or_foreign_export_is_refused_in_one_line(tmp_path: Path, golden: Golden, params: Params):
    from safetensors.numpy import save_file

    whole = tmp_path / "model.safetensors"
    save_export(whole, params, golden.config, FACTS)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-1000])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": np.zeros(3)}, foreign, {"format": "pt"})
    misfit = tmp_path / "misfit.safetensors"
    damaged = {**params, "norm": {"weight": np.zeros(3, np.float32)}}
    save_export(misfit, damaged, golden.config, FACTS)
    for path, message in (
        (cut, "damaged, or not a safetensors file"),
        (foreign, "not an echotts export"),
        (misfit, "norm/weight"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_export(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load_export(tmp_path / "absent.safetensors")


def changed_export(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Any] | None = None) -> None:
    """The export with replaced header fields (JSON or raw text; removed if None) and tensors."""
    from safetensors.numpy import load_file, save_file

    with safe_open(path, framework="numpy") as file:
        fields = dict(file.metadata())
    for name, value in header.items():
        fields[name] = value if isinstance(value, str) else json.dumps(value)
        if value is None:
            del fields[name]
    save_file(load_file(path) | dict(tensors or {}), path, fields)


CONFIG_CHANGES = [
    ({"norm_eps": "x"}, "norm_eps: Expected float, got str"),
    ({"norm_eps": None}, "norm_eps: Expected float, got null"),
    ({"heads": 0}, "decoder heads 0 must be from 1"),
    ({"heads": -2}, "decoder heads -2 must be from 1"),
    ({"depth": 10**30}, "depth: Expected int, got float"),
    ({"depth": 1 << 40}, "decoder depth 1099511627776 must be"),
    ({"width": 64.5}, "width: Expected int, got float"),
    ({"patch": True}, "patch: Expected int, got bool"),
    ({"text": []}, "text: Expected object, got array"),
    ({"text": {"width": 32, "depth": 1, "heads": 0, "mlp_width": 8}}, "encoder heads 0"),
    ({"compute_dtype": "float8"}, "compute_dtype: Invalid enum value"),
    ({"more": 1}, "unknown field 'more'"),
    ({"vocabulary": 1 << 20, "width": 1 << 20, "mlp_width": 1 << 20, "heads": 4}, "has shape"),
]
HEADER_CHANGES = [
    ({"buckets": 5}, "buckets: Expected object | null, got int"),
    ({"buckets": {"frames": 0, "tokens": 1, "reference_frames": 1}}, "buckets.frames: Expected int >= 1"),
    ({"buckets": {"frames": 1, "tokens": 1}}, "buckets: Object missing required field reference_frames"),
    ({"tokenizer": []}, "tokenizer: Expected object | null, got array"),
    ({"tokenizer": {"kind": 5}}, "tokenizer.kind: Expected str, got int"),
    ({"codec": {"id": 5}}, "codec.id: Expected str"),
    ({"codec": {"sample_rate": "x"}}, "codec.sample_rate: Expected int | null, got str"),
    ({"latent_scale": {"mean": ["x"], "std": [1.0]}}, "latent_scale.mean[0]: Expected float, got str"),
    ({"step": -1}, "step: Expected int >= 0"),
    ({"step": "9" * 5000}, "not valid JSON"),
    ({"weights": 3}, "weights: Expected str | null, got int"),
    ({"step": "[" * 400 + "]" * 400}, "nested more than 32 deep"),
    ({"note": "[" * 40000}, "not valid JSON"),
    ({"config": "[]"}, "config in the header: Expected object, got array"),
    ({"config": None}, "missing required field config"),
    ({"config": "{"}, "'config' in the header: not valid JSON"),
    ({"format": "echotts 9"}, "not an echotts export"),
]


@pytest.mark.parametrize(
    ("header", "words"),
    [*(({"config": change}, words) for change, words in CONFIG_CHANGES), *HEADER_CHANGES],
)
def test_a_header_of_other_types_is_refused_by_field(
    tmp_path: Path, golden: Golden, params: Params, header: dict[str, Any], words: str
):
    path = tmp_path / "model.safetensors"
    save_export(path, params, golden.config, FACTS)
    if isinstance(header.get("config"), dict):
        header = {"config": to_dict(golden.config) | header["config"]}
    changed_export(path, header)
    with pytest.raises(ValueError) as caught:
        load_export(path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"norm/weight": np.full(64, np.nan, np.float32)}, "norm/weight is not made of finite floats: 64 of 64"),
        ({"norm/weight": np.full(64, -np.inf, np.float16)}, "norm/weight is not made of finite floats"),
        ({"norm/weight": np.zeros(64, np.int32)}, "norm/weight is not made of finite floats: it is I32"),
        (
            {"norm/weight": np.zeros(64, ml_dtypes.float8_e4m3fn)},
            "not made of finite floats: it is F8_E4M3",
        ),
        ({"norm/weight": np.zeros(0, np.float32)}, r"norm/weight has shape (0,), but its config requires (64,)"),
        ({"silence": np.zeros((2, 3), np.float32)}, "silence has shape"),
    ],
)
def test_tensors_that_are_no_finite_floats_are_refused_by_name(
    tmp_path: Path, golden: Golden, params: Params, tensors: dict[str, Any], words: str
):
    path = tmp_path / "model.safetensors"
    save_export(path, params, golden.config, FACTS)
    changed_export(path, {}, tensors)
    with pytest.raises(ValueError) as caught:
        load_export(path)
    assert str(caught.value).startswith(f"{path}: tensor ") and words in str(caught.value)


def test_a_published_pickle_with_a_number_that_is_not_finite_is_refused_by_tensor(tmp_path: Path, params: Params):
    for bad, dtype in ((np.nan, np.float32), (np.inf, np.float16), (np.nan, ml_dtypes.bfloat16)):
        tree = jax.tree.map(lambda leaf, dtype=dtype: np.array(leaf, dtype), params_to_published(params))
        tree["TransformerBlock_1"]["mlp"]["w2"]["kernel"][0, 0] = bad
        path = write_pickle(tmp_path / "bad.pkl", {"params": tree})
        with pytest.raises(
            ValueError, match=r"bad\.pkl: parameters: TransformerBlock_1/mlp/w2/kernel is not made of finite"
        ):
            load_published(path)


@pytest.mark.parametrize(
    "change",
    [{"step": "x"}, {"step": [1]}, {"step": -1}, {"step": 1.5}, {"step": True}, {"samples_seen": 1 << 70},
     {"step": np.zeros(3, np.int32)}, {"samples_seen": None}],
)  # fmt: skip
def test_a_published_pickle_with_invalid_counts_is_rejected(tmp_path: Path, params: Params, change: dict[str, Any]):
    path = write_pickle(tmp_path / "bad.pkl", {"params": params_to_published(params), "step": 1} | change)
    with pytest.raises(ValueError, match=r"bad\.pkl: (step|samples_seen) is not an integer"):
        load_published(path)


def test_a_published_pickle_of_absurd_arrays_is_one_line(tmp_path: Path, params: Params):
    for name, leaf in (
        ("in_proj", np.zeros((0, 64))),
        ("in_proj", np.zeros(3)),
        ("in_proj", "text"),
        ("in_proj", None),
    ):
        tree = params_to_published(params) | {name: {"kernel": leaf}}
        with pytest.raises(ValueError, match=r"bad\.pkl: ") as caught:
            load_published(write_pickle(tmp_path / "bad.pkl", {"params": tree}))
        assert "\n" not in str(caught.value)


def test_a_failed_save_leaves_no_file(tmp_path: Path, golden: Golden, params: Params):
    with pytest.raises(TypeError):
        save_export(tmp_path / "model.safetensors", params, golden.config, Facts(weights=object()))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
