"""Checkpoints: one unit, written atomically, retained by policy, rejected for other configurations."""

import dataclasses
import gc
import json
import logging
import resource
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from echotts.checkpoint import checkpoints as checkpoints_module
from echotts.checkpoint.agreement import ConfigDiffersError, check_config
from echotts.checkpoint.checkpoints import Checkpoints
from echotts.checkpoint.contents import CheckpointError, Meta, step_folders
from echotts.checkpoint.facts import CodecFacts, Facts
from echotts.config import to_dict
from echotts.rundir.layout import CHECKPOINTS, VERIFIED
from tests.tiny_training import TINY, with_sections


def arrays(seed: int, size: int = 1000):
    """A small state of the structure of a real one, empty nodes of the optimizer included."""
    rng = np.random.default_rng(seed)
    params = {"in_proj": {"kernel": jnp.asarray(rng.normal(size=(size,)), jnp.float32)}}
    average, moments = (jax.tree.map(lambda x, factor=factor: x * factor, params) for factor in (2, 3))
    return {"params": params, "ema": average, "opt_state": ((), ({"count": jnp.int32(seed), "mu": moments}, ()))}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def meta(step: int, config=TINY) -> Meta:
    return Meta(
        step=step,
        samples_seen=8 * step,
        stream={"step": step},
        config=to_dict(config),
        facts=Facts(codec=CodecFacts(id="x")),
    )


def open_run(folder, **run) -> Checkpoints:
    return Checkpoints(folder, with_sections(TINY, run=run).run)


def save_steps(folder, *steps, **run):
    with open_run(folder, **run) as checkpoints:
        for step in steps:
            checkpoints.save(arrays(step), meta(step))
        checkpoints.wait()


def save_and_wait(checkpoints, tree, about):
    checkpoints.save(tree, about)
    checkpoints.wait()


def names(folder):
    return [path.name for path in reversed(step_folders(folder / CHECKPOINTS))]


def restore(folder, config=TINY):
    with open_run(folder) as checkpoints:
        return checkpoints.restore(abstract(arrays(0)), to_dict(config))


def test_saving_and_restoring_is_bitwise_exact(tmp_path):
    save_steps(tmp_path, 3)
    found, about = restore(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found, arrays(3))
    assert dataclasses.asdict(about) == json.loads(json.dumps(dataclasses.asdict(meta(3))))


def test_a_new_run_has_nothing_to_restore(tmp_path):
    assert restore(tmp_path) is None


def test_the_last_ones_and_every_nth_are_kept(tmp_path):
    save_steps(tmp_path, *range(1, 9), keep_last=2, keep_every=3)
    assert names(tmp_path) == [f"step_{step:08d}" for step in (3, 6, 7, 8)]


def test_saving_a_step_again_leaves_it_as_it_is(tmp_path):
    with open_run(tmp_path) as checkpoints:
        checkpoints.save(arrays(1), meta(1))
        checkpoints.save(arrays(2), meta(1))
        checkpoints.wait()
    jax.tree.map(np.testing.assert_array_equal, restore(tmp_path)[0], arrays(1))


def test_the_state_may_be_donated_while_it_is_still_being_written(tmp_path):
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = add(arrays(1, size=1_000_000))
    expected = jax.device_get(state)
    with open_run(tmp_path) as checkpoints:
        checkpoints.save(state, meta(1))
        for _ in range(10):
            state = add(state)
        checkpoints.wait()
        found, _ = checkpoints.restore(abstract(state), to_dict(TINY))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def without_optimizer(folder):
    shutil.rmtree(folder / "opt_state")


def cut_arrays(folder):
    largest = max((path for path in (folder / "params").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def cut_meta(folder):
    (folder / "meta" / "metadata").write_text('{"step": ')


@pytest.mark.parametrize("damage", [empty, without_optimizer, cut_arrays, cut_meta])
def test_a_damaged_newest_checkpoint_is_logged_and_the_previous_one_restored(tmp_path, caplog, damage):
    save_steps(tmp_path, 1, 2)
    damage(tmp_path / CHECKPOINTS / "step_00000002")
    with caplog.at_level(logging.WARNING, logger="echotts"):
        found, about = restore(tmp_path)
    assert about.step == 1
    jax.tree.map(np.testing.assert_array_equal, found, arrays(1))
    assert "step_00000002: cannot be read, trying the previous one" in caplog.text
    assert (tmp_path / CHECKPOINTS / "step_00000002.broken").is_dir()
    save_steps(tmp_path, 2)
    assert restore(tmp_path)[1].step == 2


def test_an_unfinished_write_is_no_checkpoint_and_is_cleared_away(tmp_path):
    save_steps(tmp_path, 1)
    unfinished = tmp_path / CHECKPOINTS / "step_00000002.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / CHECKPOINTS / "step_00000001", unfinished)
    assert restore(tmp_path)[1].step == 1
    deadline = time.monotonic() + 20  # orbax clears it in the background
    while unfinished.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not unfinished.exists()


def test_when_no_checkpoint_can_be_read_the_run_does_not_start_over_silently(tmp_path):
    save_steps(tmp_path, 1)
    empty(tmp_path / CHECKPOINTS / "step_00000001")
    with pytest.raises(CheckpointError, match="none of 1 checkpoints can be read"):
        restore(tmp_path)


@pytest.fixture
def no_room():
    """Files above 100 kB cannot be written, which simulates a full disk for large arrays on any machine."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, previous)


def test_when_writing_fails_the_previous_checkpoint_still_restores(tmp_path, no_room):
    with open_run(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(arrays(1), meta(1))
        checkpoints.wait()
        with pytest.raises(CheckpointError) as caught:
            save_and_wait(checkpoints, arrays(2, size=1_000_000), meta(2))
    assert "a checkpoint could not be written (File too large; " in str(caught.value)
    assert "the last complete one is step_00000001" in str(caught.value)
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step_00000001"]
    jax.tree.map(np.testing.assert_array_equal, restore(tmp_path)[0], arrays(1))


def test_a_checkpoint_that_cannot_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    save_steps(tmp_path, 1)
    room = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints_module.shutil, "disk_usage", lambda path: room._replace(free=10_000))
    with open_run(tmp_path) as checkpoints:
        with pytest.raises(
            CheckpointError, match=r"takes 0\.0 MB, but 0\.0 MB are free; the last complete one is step_00000001"
        ):
            checkpoints.save(arrays(2), meta(2))
        with pytest.raises(CheckpointError, match="free some space and repeat the command"):
            checkpoints.restore(abstract(arrays(0)), to_dict(TINY))
    assert names(tmp_path) == ["step_00000001"]


def test_another_configuration_is_refused_with_the_differences(tmp_path):
    save_steps(tmp_path, 1)
    other = with_sections(TINY, optim={"learning_rate": 0.5}, data={"batch_size": 16}, run={"log_every": 77})
    with pytest.raises(ConfigDiffersError) as caught:
        restore(tmp_path, other)
    message = str(caught.value)
    assert "data.batch_size: 8 -> 16; optim.learning_rate: 0.003 -> 0.5;" in message
    assert "log_every" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("optim", {"steps": 99}),
        ("data", {"data": "elsewhere", "interleave": 3}),
        ("model", {"remat": "full"}),
        ("run", {"keep_last": 9}),
    ],
)
def test_keys_that_may_differ_are_accepted(tmp_path, section, change):
    check_config(to_dict(TINY), to_dict(with_sections(TINY, **{section: change})), tmp_path)


def test_a_key_that_came_later_counts_as_its_default(tmp_path):
    older = to_dict(TINY)
    del older["data"]["tokenizer"]
    check_config(older, to_dict(TINY), tmp_path)
    with pytest.raises(ConfigDiffersError, match=r"data\.tokenizer: 'byte' -> 'words\.model'"):
        check_config(older, to_dict(with_sections(TINY, data={"tokenizer": "words.model"})), tmp_path)


@pytest.mark.parametrize(("section", "change"), [("run", {"seed": 1}), ("model", {"compute_dtype": "bfloat16"})])
def test_keys_that_affect_results_must_not_differ(tmp_path, section, change):
    with pytest.raises(ConfigDiffersError, match=rf"{section}\.{next(iter(change))}"):
        check_config(to_dict(TINY), to_dict(with_sections(TINY, **{section: change})), tmp_path)


def test_a_save_is_due_by_count_or_by_the_clock(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints_module.time, "monotonic", lambda: now[0])
    with open_run(tmp_path, save_every_steps=10, save_every_minutes=2.0) as checkpoints:
        assert [step for step in range(1, 31) if checkpoints.due(step)] == [10, 20, 30]
        now[0] = 121.0
        assert checkpoints.due(3)
        checkpoints.save(arrays(3), meta(3))
        assert not checkpoints.due(4)


def flip_largest(folder):
    """One bit in the middle of the largest data file of the parameters."""
    data = [path for path in (folder / "params").rglob("*") if path.is_file() and "/d/" in str(path)]
    largest = max(data, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def edited(change):
    def damage(folder):
        path = folder / "meta" / "metadata"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


WRONG_CONTENTS = [
    lambda fields: [],
    lambda fields: {"format": 1},
    lambda fields: fields | {"samples_seen": "many"},
    lambda fields: fields | {"step": 1},
    lambda fields: fields | {"samples_seen": 7},
    lambda fields: fields | {"stream": {}, "config": {}, "facts": {}},
    lambda fields: fields | {"guard": {"errors": [[[[]]] * 3]}},
]


@pytest.mark.parametrize("damage", [flip_largest, *map(edited, WRONG_CONTENTS)])
def test_a_checkpoint_changed_after_saving_is_neither_restored_nor_marked_as_verified(tmp_path, caplog, damage):
    save_steps(tmp_path, 1, 2)
    damage(tmp_path / CHECKPOINTS / "step_00000002")
    found, about = restore(tmp_path)
    assert about.step == 1
    jax.tree.map(np.testing.assert_array_equal, found, arrays(1))
    assert "step_00000002: cannot be read, trying the previous one" in caplog.text
    assert (tmp_path / CHECKPOINTS / "step_00000002.broken").is_dir()
    assert json.loads((tmp_path / VERIFIED).read_text()) == {"step": 1}


@pytest.fixture
def coroutines_collected():
    """Exceptions left over by orbax, raised in this test rather than in the next."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_flipped_bit_of_a_checkpoints_data_is_found_or_harmless(tmp_path, coroutines_collected):
    save_steps(tmp_path, 1, 2)
    whole = tmp_path / CHECKPOINTS / "step_00000002"
    files = [path for path in whole.rglob("*") if path.is_file() and "ema" not in path.parts]
    rng = np.random.default_rng(0)
    steps = []
    for path in files:
        content = path.read_bytes()
        for place in rng.integers(len(content), size=1 if len(content) else 0):
            path.write_bytes(content[:place] + bytes([content[place] ^ (1 << rng.integers(8))]) + content[place + 1 :])
            found, about = restore(tmp_path)
            jax.tree.map(np.testing.assert_array_equal, found, arrays(about.step))
            steps.append(about.step)
            if about.step == 1:
                whole.with_name(f"{whole.name}.broken").rename(whole)
            path.write_bytes(content)
    assert set(steps) == {1, 2} or set(steps) == {1}


def test_a_checkpoint_of_a_program_without_digests_is_restored_but_not_noted_as_verified(tmp_path):
    save_steps(tmp_path, 1)
    shutil.rmtree(tmp_path / CHECKPOINTS / "step_00000001" / "digests")
    assert restore(tmp_path)[1].step == 1
    assert not (tmp_path / VERIFIED).exists()
