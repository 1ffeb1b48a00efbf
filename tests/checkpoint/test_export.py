"""Weights out of a run: the file that inference loads, and the published pickle."""

import pickle
import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from echotts.checkpoint import export_file, interop
from echotts.checkpoint.checkpoints import Checkpoints
from echotts.checkpoint.contents import CheckpointError, Meta
from echotts.checkpoint.export import export
from echotts.checkpoint.facts import CodecFacts, Facts
from echotts.checkpoint.weights import load_run, load_weights
from echotts.config import to_dict
from echotts.model.parameters import flatten
from echotts.rundir.layout import CHECKPOINTS
from echotts.training import mesh as meshes
from echotts.training.state import initial_state
from tests import tiny_speaker
from tests.tiny_training import TINY

CODEC = {"id": "tiny", "weights_hash": "ab", "sample_rate": 16000, "hop": 640, "channels": 8}
FACTS = Facts(codec=CodecFacts(**CODEC), tokenizer={"kind": "byte"}, silence=[[0.125] * 8])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Two checkpoints of one state; the average differs from the weights by 1."""
    folder = tmp_path_factory.mktemp("run")
    arrays = initial_state(TINY, meshes.make_mesh()).arrays()
    arrays["ema"] = {name: _plus_one(part) for name, part in arrays["ema"].items()}
    nu = _plus_one(arrays["params"])
    arrays["opt_state"] = optax.tree.set(arrays["opt_state"], count=jnp.int32(5), mu=_plus_one(nu), nu=nu)
    with Checkpoints(folder, TINY.run) as checkpoints:
        for step in (3, 6):
            about = Meta(step=step, samples_seen=8 * step, stream={}, config=to_dict(TINY), facts=FACTS)
            checkpoints.save(arrays, about)
    return folder


def _plus_one(tree):
    return {name: _plus_one(part) for name, part in tree.items()} if isinstance(tree, dict) else tree + 1


def assert_same(params, expected, **tolerance):
    params, expected = flatten(params), flatten(expected)
    assert params.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(params[path], expected[path], **({"rtol": 0, "atol": 0} | tolerance), err_msg=path)


def test_the_average_of_the_newest_checkpoint_is_what_is_exported(run_dir, tmp_path):
    output = tmp_path / "new" / "model.safetensors"
    told = export(run_dir, output)
    params, config, facts = export_file.load_export(output)
    assert config == TINY.model
    assert_same(params, load_run(run_dir, "ema").params)
    assert facts.to_dict() == {
        "silence": [[0.125] * 8],
        "weights": "ema",
        "step": 6,
        "samples_seen": 48,
        "codec": CODEC,
        "tokenizer": {"kind": "byte"},
        "buckets": {"frames": 16, "tokens": 12, "reference_frames": 8},
    }
    assert told == facts


def test_raw_weights_and_the_average_are_distinguished(run_dir):
    raw, average = load_run(run_dir, "raw"), load_run(run_dir, "ema")
    assert (raw.facts.weights, average.facts.weights) == ("raw", "ema")
    assert_same(average.params, _plus_one(raw.params), atol=1e-6)


def test_one_checkpoint_can_be_chosen_by_its_folder(run_dir):
    assert load_weights(run_dir / CHECKPOINTS / "step_00000003").facts.step == 3
    assert load_weights(run_dir / CHECKPOINTS).facts.step == 6


@pytest.mark.parametrize(("storage", "size", "rtol"), [("float16", 2, 1e-3), ("bfloat16", 2, 8e-3)])
def test_smaller_storage_loads_as_float32(run_dir, tmp_path, storage, size, rtol):
    small, whole = tmp_path / "small.safetensors", tmp_path / "whole.safetensors"
    export(run_dir, small, "raw", storage)
    export(run_dir, whole, "raw")
    assert small.stat().st_size < whole.stat().st_size * size / 4 + 10_000
    params, _, _ = export_file.load_export(small)
    assert {leaf.dtype for leaf in flatten(params).values()} == {np.dtype("float32")}
    assert_same(params, load_run(run_dir, "raw").params, rtol=rtol, atol=1e-6)


def test_the_published_pickle_round_trip_is_bitwise_exact(run_dir, tmp_path):
    export(run_dir, tmp_path / "step_6.pkl")
    published = interop.load_published(tmp_path / "step_6.pkl")
    assert (published.step, published.samples_seen) == (6, 48)
    assert_same(published.params, load_run(run_dir, "raw").params)
    assert_same(load_weights(tmp_path / "step_6.pkl").params, published.params)
    adam = load_weights(tmp_path / "step_6.pkl", with_optimizer=True).adam
    assert adam.count == 5  # the number of updates is kept
    assert_same(adam.mu, _plus_one(_plus_one(published.params)))
    assert_same(adam.nu, _plus_one(published.params))
    export(run_dir, tmp_path / "ema.pkl", "ema")  # no optimizer state belongs to the average
    assert interop.load_published(tmp_path / "ema.pkl").opt_state is None


def test_a_damaged_newest_checkpoint_is_passed_over(run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    shutil.rmtree(copy / CHECKPOINTS / "step_00000006" / "ema")
    assert load_run(copy).facts.step == 3
    shutil.rmtree(copy / CHECKPOINTS / "step_00000003")
    with pytest.raises(CheckpointError, match="none of the checkpoints can be read"):
        load_run(copy)


def test_a_path_without_weights_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights found; give a run directory"):
        load_weights(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no checkpoint found"):
        load_weights(tmp_path)


def test_an_export_of_another_name_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"model\.bin: an export must be \.safetensors"):
        export(tmp_path, tmp_path / "model.bin")


@pytest.mark.parametrize("scale", [[1.0], {"mean": [1.0]}, {"mean": ["x"], "std": [1.0]}])
def test_a_pickle_whose_latent_scale_is_none_is_refused(tmp_path, scale):
    params = interop.params_to_published(tiny_speaker.random_params())
    (tmp_path / "step_1.pkl").write_bytes(pickle.dumps({"params": params, "latent_scale": scale}))
    with pytest.raises(ValueError, match=r"step_1\.pkl: latent_scale"):
        load_weights(tmp_path / "step_1.pkl")


def test_weights_trained_on_shards_that_name_no_codec_are_exported_and_loaded(tmp_path):
    facts = Facts(codec=CodecFacts(channels=8), step=1)
    params = initial_state(TINY, meshes.make_mesh()).params
    export_file.save_export(tmp_path / "model.safetensors", params, TINY.model, facts)
    assert load_weights(tmp_path / "model.safetensors").facts == facts
