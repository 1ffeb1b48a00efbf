"""Runs that adapt a tiny base: only what should be trained changes, and the base does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from echotts.checkpoint import export_file
from echotts.checkpoint.adapters import BaseDiffersError, load_adapter, weights_hash
from echotts.checkpoint.contents import read_meta, step_folders
from echotts.checkpoint.export import export, export_merged
from echotts.checkpoint.facts import CodecFacts, Facts, Limits, StudentFacts
from echotts.checkpoint.weights import load_inversion, load_run, load_weights, read_about
from echotts.config import TuneConfig
from echotts.latents import LatentScale
from echotts.model import merge
from echotts.model.adapters import create_adapters, merge_adapters, with_adapters
from echotts.model.duration import duration_shapes
from echotts.model.parameters import flatten, structure
from echotts.model.student import student_shapes
from echotts.rundir.layout import CHECKPOINTS
from echotts.training import mesh as meshes
from echotts.training.loop import train
from echotts.training.recipes import tuning
from echotts.training.state import abstract_state
from echotts.training.tuning import check_base_facts
from tests import tiny_speaker
from tests.tiny_training import CHANNELS, TINY, Spoken, random_batch, with_sections
from tests.training.test_loop import Sound, StopAfter, events, lines

FACTS = Facts(tokenizer={"kind": "byte"}, buckets=Limits(frames=16, tokens=12, reference_frames=8), step=7)
PARAMS = tiny_speaker.random_params(TINY.model)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    export_file.save_export(path, PARAMS, TINY.model, FACTS)
    return path


@pytest.fixture
def tuned(base, shards, tmp_path):
    """(method, keys of sections) -> the configuration of a tuning of the base."""

    def make(method, rank=4, folder="run", **sections):
        config = with_sections(TINY, data={"data": str(shards)}, run={"run_dir": str(tmp_path / folder)})
        config = dataclasses.replace(
            config,
            tune=TuneConfig(method=method, rank=rank),
            run=dataclasses.replace(config.run, init_from=str(base)),
        )
        return with_sections(config, **sections)

    return make


def same(one, other):
    one, other = flatten(one), flatten(other)
    return one.keys() == other.keys() and all(np.array_equal(one[path], other[path]) for path in one)


def velocity(params, rank=0):
    batch = jax.tree.map(jnp.asarray, random_batch())
    inputs = (batch.text_ids, batch.text_mask, batch.speaker_latent, batch.speaker_mask)
    model = structure(TINY.model, adapter_rank=rank)
    return jax.jit(lambda tree: merge(model, tree)(batch.latent, jnp.full(8, 0.5), *inputs))(params)


def test_fresh_adapters_change_no_bit_and_merged_ones_compute_the_same():
    fresh = jax.jit(lambda: create_adapters(TINY.model, 4, jax.random.key(0)))()
    plain = velocity(PARAMS)
    np.testing.assert_array_equal(velocity(with_adapters(PARAMS, fresh), rank=4), plain)
    assert same(merge_adapters(PARAMS, fresh), PARAMS)
    noise = np.random.default_rng(0)
    trained = jax.tree.map(lambda leaf: leaf + 0.1 * noise.normal(size=leaf.shape).astype(np.float32), fresh)
    beside, merged = velocity(with_adapters(PARAMS, trained), rank=4), velocity(merge_adapters(PARAMS, trained))
    np.testing.assert_allclose(merged, beside, atol=2e-5)
    assert np.abs(merged - plain).max() > 0.1


def test_the_state_of_adapters_has_only_adapters(tuned):
    state = abstract_state(tuned("lora"), meshes.make_mesh())
    names = {path.rpartition("/")[2] for path in flatten(state.params)}
    assert names == {"lora_a", "lora_b"}
    values = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == 2 * values + 2  # two moments, two counts
    assert values < 0.3 * sum(leaf.size for leaf in jax.tree.leaves(PARAMS))


def test_adapters_are_trained_resumed_exported_and_merged_while_the_base_keeps_its_bits(tuned, base, tmp_path, shards):
    config = tuned("lora", data={"heldout": str(shards)}, run={"eval_every": 3})
    before = base.read_bytes()
    assert train(config).finished
    parts = with_sections(config, run={"run_dir": str(tmp_path / "parts")})
    assert train(parts, stop=StopAfter(3)).step == 3
    assert train(parts).finished
    for weights in ("raw", "ema"):
        assert same(load_run(tmp_path / "run", weights).params, load_run(tmp_path / "parts", weights).params)
    losses = lines(tmp_path / "run", "heldout/loss")
    assert losses[6] < losses[3]
    assert lines(tmp_path / "run") == lines(tmp_path / "parts")

    export(tmp_path / "run", tmp_path / "adapter.safetensors")
    export_merged(base, tmp_path / "adapter.safetensors", tmp_path / "merged.safetensors")
    merged, speaks = load_weights(tmp_path / "merged.safetensors"), load_run(tmp_path / "run")
    assert same(merged.params, speaks.params)
    assert (merged.facts.step, merged.facts.buckets) == (6, FACTS.buckets)
    assert same(load_weights(base, adapter=tmp_path / "run").params, merged.params)
    changed = {path for path, leaf in flatten(merged.params).items() if not np.array_equal(leaf, flatten(PARAMS)[path])}
    expected = {path for path in flatten(PARAMS) if "blocks/" in path and path.endswith("/kernel")}
    assert changed == {path for path in expected if path.startswith(("blocks/attention/w", "blocks/mlp/"))}
    assert base.read_bytes() == before
    half = tmp_path / "half.safetensors"
    export(tmp_path / "run", half, storage="float16")
    assert half.stat().st_size < 0.6 * (tmp_path / "adapter.safetensors").stat().st_size
    assert load_adapter(half).about == load_adapter(tmp_path / "adapter.safetensors").about


def test_an_adapter_of_another_base_is_refused_with_both_hashes(tuned, base, tmp_path):
    config = tuned("lora", optim={"steps": 1})
    train(config)
    export(tmp_path / "run", tmp_path / "adapter.safetensors")
    other = tmp_path / "other.safetensors"
    export_file.save_export(other, jax.tree.map(lambda leaf: leaf * 2, PARAMS), TINY.model, FACTS)
    both = r"adapter\.safetensors: an adapter of .*base.* with hash [0-9a-f]{12}, but .*other.* has [0-9a-f]{12}: "
    with pytest.raises(BaseDiffersError, match=both):
        load_weights(other, adapter=tmp_path / "adapter.safetensors")
    longer = with_sections(config, run={"init_from": str(other)}, optim={"steps": 2})
    with pytest.raises(
        ValueError, match=r"frozen weights have hash [0-9a-f]{12}, but the run .* those of [0-9a-f]{12}"
    ):
        train(longer)
    with pytest.raises(ValueError, match=r"base\.safetensors: not an adapter"):
        load_adapter(base)


def test_an_inversion_trains_one_voice_and_no_weight(tuned, base, tmp_path, shards):
    config = tuned("inversion", data={"heldout": str(shards)}, run={"eval_every": 10})
    config = with_sections(config, optim={"steps": 60, "learning_rate": 0.1, "weight_decay": 0.0})
    train(with_sections(config, optim={"steps": 60}), stop=StopAfter(7))
    train(config)
    losses = lines(tmp_path / "run", "heldout/loss")
    assert losses[60] < losses[10]
    voice, facts = load_inversion(tmp_path / "run")
    assert (voice.shape, facts.step) == ((8, CHANNELS), 60)
    assert facts.base == load_inversion(tmp_path / "run", "raw")[1].base == weights_hash(load_weights(base).params)
    with pytest.raises(ValueError, match="holds a voice, not a model: echotts voice save NAME"):
        load_weights(tmp_path / "run")
    assert same(load_weights(base).params, PARAMS)


def test_only_a_full_tuning_may_read_bytes_where_its_base_reads_phonemes(tuned):
    kinds = [Facts(tokenizer={"kind": kind}) for kind in ("english", "byte")]
    for facts in (kinds, kinds[::-1], [kinds[0], kinds[0]], [Facts(), kinds[0]]):
        check_base_facts(tuned("full"), *facts)
    check_base_facts(tuned("lora"), kinds[0], kinds[0])
    pieces = Facts(tokenizer={"kind": "sentencepiece", "model": "AA=="})
    for method, facts in (("lora", kinds), ("full", [pieces, kinds[0]]), ("full", [kinds[0], pieces])):
        with pytest.raises(ValueError, match=r"has another tokenizer than data\.tokenizer byte: use its own"):
            check_base_facts(tuned(method), *facts)


def test_a_duration_predictor_is_trained_resumed_and_exported_with_the_bits_of_its_base(tuned, tmp_path, shards):
    half = tmp_path / "half.safetensors"
    export_file.save_export(half, PARAMS, TINY.model, FACTS, "float16")
    run = {"eval_every": 50, "init_from": str(half), "spike_factor": 0.0, "save_every_steps": 0}
    optim = {"steps": 100, "learning_rate": 0.02}
    config = tuned("duration", data={"heldout": str(shards)}, run=run, optim=optim, flow={"text_dropout": 0.0})
    assert train(config).finished
    parts = with_sections(config, run={"run_dir": str(tmp_path / "parts")})
    assert train(parts, stop=StopAfter(30)).step == 30
    assert train(parts).finished
    assert lines(tmp_path / "run") == lines(tmp_path / "parts")
    assert lines(tmp_path / "run", "heldout/loss")[100] < 0.1  # a letter takes two frames

    export(tmp_path / "run", tmp_path / "full.safetensors")
    before, after = (safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in ("half", "full"))
    assert after.keys() - before.keys() == duration_shapes(TINY.model).keys()
    assert all(tensor.dtype == np.float16 for tensor in before.values())
    assert all(after[name].tobytes() == tensor.tobytes() for name, tensor in before.items())
    loaded, trained = load_weights(tmp_path / "full.safetensors"), load_weights(tmp_path / "run")
    assert loaded.facts == trained.facts == load_weights(half).facts
    assert loaded.duration and trained.duration and same(loaded.duration, trained.duration)
    assert same(loaded.params, trained.params)
    assert load_weights(half).duration is None
    with safetensors.safe_open(tmp_path / "full.safetensors", "numpy") as file:
        broken = after | {"duration/frames/bias": np.zeros(2, np.float32)}
        safetensors.numpy.save_file(broken, tmp_path / "broken.safetensors", file.metadata())
    with pytest.raises(ValueError, match=r"broken\.safetensors: tensor duration/frames/bias has shape \(2,\)"):
        load_weights(tmp_path / "broken.safetensors")


def test_a_duration_predictor_of_another_base_is_refused(tuned, base, tmp_path):
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(base.read_bytes())
    config = tuned("duration", run={"init_from": str(moved)}, optim={"steps": 1}, flow={"text_dropout": 0.0})
    train(config)
    export_file.save_export(moved, jax.tree.map(lambda leaf: leaf * 2, PARAMS), TINY.model, FACTS)
    with pytest.raises(BaseDiffersError, match=r"predictor for weights with hash \w{12}, but .*moved.* has \w{12}: "):
        export(tmp_path / "run", tmp_path / "full.safetensors")
    moved.unlink()
    with pytest.raises(BaseDiffersError, match=r"a duration predictor for .*moved.*, which is not here"):
        load_weights(tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"--tune duration has no weights of its own to write to .*full\.pkl: give a \.safetensors"
    ):
        export(tmp_path / "run", tmp_path / "full.pkl")


def test_a_student_is_trained_resumed_and_exported_with_the_bits_of_its_base(tuned, tmp_path, shards):
    half = tmp_path / "half.safetensors"
    export_file.save_export(half, PARAMS, TINY.model, FACTS, "float16")
    run = {"eval_every": 20, "init_from": str(half), "spike_factor": 0.0, "save_every_steps": 0}
    optim = {"steps": 40, "learning_rate": 5e-3, "accumulation": 2}
    config = tuned("distil", data={"heldout": str(shards)}, run=run, optim=optim, flow={"text_dropout": 0.0})
    config = with_sections(config, tune={"scales": (0.0, 3.0)})
    assert train(config).finished
    parts = with_sections(config, run={"run_dir": str(tmp_path / "parts")})
    assert train(parts, stop=StopAfter(15)).step == 15
    assert train(parts).finished
    assert lines(tmp_path / "run") == lines(tmp_path / "parts")
    losses = lines(tmp_path / "run", "heldout/loss")
    assert losses[40] < losses[20]

    export(tmp_path / "run", tmp_path / "full.safetensors", storage="float16")
    before, after = (safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in ("half", "full"))
    added = {f"student/{name}" for name in student_shapes(TINY.model, 4)}
    assert after.keys() - before.keys() == added
    assert all(after[name].tobytes() == tensor.tobytes() for name, tensor in before.items())
    assert all(after[name].dtype == np.float16 for name in added)
    loaded, trained = load_weights(tmp_path / "full.safetensors"), load_weights(tmp_path / "run")
    assert loaded.facts == trained.facts
    assert loaded.facts.student == StudentFacts(rank=4, scales=(0.0, 3.0), interval=(0.0, 1.0))
    assert dataclasses.replace(loaded.facts, student=None) == load_weights(half).facts
    assert same(loaded.params, trained.params)
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16).astype(np.float32), trained.student)
    assert same(loaded.student, rounded)
    assert load_weights(half).student is None

    again = with_sections(config, run={"init_from": str(tmp_path / "full.safetensors"), "run_dir": str(tmp_path / "b")})
    for teacher in (again.run.init_from, str(tmp_path / "run")):
        with pytest.raises(ValueError, match=r"has a student already: distil the model that it was made from"):
            tuning(again, "distil", teacher, *read_about(teacher))
    bigger = dataclasses.replace(TINY.model, mlp_width=128)
    with pytest.raises(ValueError, match=r"half\.safetensors: weights of another model: model\.mlp_width: 64 -> 128"):
        train(dataclasses.replace(with_sections(config, run={"run_dir": str(tmp_path / "c")}), model=bigger))


def test_a_run_stops_when_the_held_out_loss_no_longer_falls_and_its_best_checkpoint_counts(tuned, tmp_path, shards):
    run = {"eval_every": 2, "patience": 2, "keep_last": 1, "save_every_steps": 0}
    config = tuned("full", data={"heldout": str(shards)}, run=run, optim={"steps": 40, "learning_rate": 1.0})
    first = train(config, stop=StopAfter(5))  # such a rate destroys the model
    result = train(config)
    losses = lines(tmp_path / "run", "heldout/loss")
    best = min(losses, key=lambda step: losses[step])
    assert not first.finished and result.finished
    assert (result.step, result.best_step) == (best + 4, best)
    assert load_run(tmp_path / "run").facts.step == best
    newest = step_folders(tmp_path / "run" / CHECKPOINTS)[0]
    assert load_weights(str(newest)).facts.step == result.step
    assert read_meta(newest).best["waited"] == 2
    assert train(config) == result
    assert events(tmp_path / "run")[-1] == (result.step, "finished")
    train(with_sections(config, run={"patience": 0, "eval_every": 0}, optim={"steps": result.step + 1}))
    assert load_run(tmp_path / "run").facts.step == result.step + 1


@dataclasses.dataclass
class Heard:
    words_wrong: int
    text: str = ""
    words: int = 4
    characters_wrong: int = 0
    characters: int = 9


def test_the_best_speech_may_decide_instead_of_the_loss(tuned, tmp_path):
    wrong, similarity = {1: 2, 2: 1, 3: 1, 4: 0, 5: 1, 6: 1}, {1: 0.9, 2: 0.5, 3: 0.8, 4: 0.5, 5: 0.5, 6: 0.5}

    def speak(weights, text, seed, voice):
        step = weights.facts.step
        return Spoken(Sound(), heard=Heard(wrong[step]), similarity=similarity[step])

    run = {"sentences": ("ab",), "eval_asr": "digits", "sample_every": 1, "patience": 2, "best_by": "speech"}
    config = tuned("full", optim={"steps": 20}, run=run | {"keep_last": 1, "save_every_steps": 0})
    first = train(config, speak=speak, stop=StopAfter(4))
    result = train(config, speak=speak)
    assert (first.step, result.step, result.best_step) == (4, 6, 3)  # 0.25 - 0.8 is the lowest
    assert load_run(tmp_path / "run").facts.step == 3
    assert lines(tmp_path / "run", "speech/voice_similarity") == {1: 0.9, 2: 0.5, 3: 0.8, 5: 0.5, 6: 0.5}


def test_data_of_another_codec_are_refused(tuned, tmp_path):
    theirs = tmp_path / "theirs.safetensors"
    facts = dataclasses.replace(FACTS, codec=CodecFacts(id="theirs", weights_hash="ab" * 32))
    export_file.save_export(theirs, PARAMS, TINY.model, facts)
    from echotts.training.tuning import check_base_facts

    config = tuned("full", run={"init_from": str(theirs)})
    given = dataclasses.replace(facts, codec=CodecFacts(weights_hash="cd" * 32))
    with pytest.raises(ValueError, match=r"hash cdcdcdcdcdcd, but .*theirs.* abababababab: .* --codec theirs"):
        check_base_facts(config, facts, given)


def test_a_tuning_keeps_the_latent_scale_of_its_base(tuned, tmp_path):
    scale = LatentScale.measured("channel", [0.5] * CHANNELS, [2.0] * CHANNELS).to_json()
    theirs = tmp_path / "scaled.safetensors"
    export_file.save_export(theirs, PARAMS, TINY.model, dataclasses.replace(FACTS, latent_scale=scale))
    config = tuned("full", data={"latent_scale": "channel"}, run={"init_from": str(theirs)}, optim={"steps": 1})
    train(config)
    assert load_run(tmp_path / "run").facts.latent_scale == scale
