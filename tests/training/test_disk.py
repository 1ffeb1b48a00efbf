"""The trainer and the watchdog: leases, complete checkpoints, freeing space before a save, waiting when asked."""

import json
import os
import threading
import time

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from echotts.checkpoint import checkpoints, weights
from echotts.checkpoint.checkpoints import Checkpoints
from echotts.disk.runs import noted_step
from echotts.disk.settings import Limits, Root, Settings
from echotts.disk.watchdog import Watchdog, space_maker
from echotts.multihost import messages, waiting
from echotts.multihost.runtime import StopSignal
from echotts.rundir import pause
from echotts.rundir.layout import CHECKPOINTS, VERIFIED, WRITER
from echotts.rundir.leases import is_leased, lease
from echotts.rundir.metrics import metrics_path
from echotts.training.loop import train
from tests.checkpoint.test_checkpoints import abstract, arrays, meta, names, open_run, restore, save_steps
from tests.tiny_training import TINY, with_sections
from tests.training.test_loop import StopAfter


def always_clean(*roots: Root) -> Settings:
    return Settings(limits=Limits(start=1e-9, stop=1e-9, min_free_gib=0.0, min_free_inodes=0), roots=roots)


def leased(path) -> bool:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        return is_leased(folder, path.name)
    finally:
        os.close(folder)


def run_with_config(folder, **run):
    """A run directory as a trainer leaves it before its first step."""
    (folder / "config.json").write_text(json.dumps({"run": {"keep_last": 3, "keep_every": 0} | run}))
    return folder


def test_orbax_checkpoints_are_complete_and_the_trainer_tolerates_deletion_of_old_ones(tmp_path):
    run = run_with_config(tmp_path)
    watchdog = Watchdog(always_clean(Root(kind="runs", path=run, min_age_hours=0.0, keep_last=1)))
    with open_run(run, keep_last=3) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(arrays(step), meta(step))
            checkpoints.wait()
            if step in (3, 4):
                assert [action.path.name for action in watchdog.run_pass()][-1] == f"step_{step - 1:08d}"
                assert names(run) == [f"step_{step:08d}"]
    assert names(run) == [f"step_{step:08d}" for step in (5, 6, 7)]
    found, about = restore(run)
    assert about.step == 7
    jax.tree.map(np.testing.assert_array_equal, found, arrays(7))


def test_a_checkpoint_is_leased_while_it_is_restored_and_verified_after(tmp_path, monkeypatch):
    save_steps(tmp_path, 1, 2)
    newest = tmp_path / CHECKPOINTS / "step_00000002"
    seen = []
    really = checkpoints.read_arrays
    monkeypatch.setattr(checkpoints, "read_arrays", lambda *given: seen.append(leased(newest)) or really(*given))
    restore(tmp_path)
    assert seen == [True] * 3
    assert not leased(newest)
    here = os.open(tmp_path, os.O_RDONLY)
    assert noted_step(here, (), VERIFIED) == 2
    os.close(here)


def test_the_trainer_too_keeps_a_checkpoint_that_somebody_reads(tmp_path):
    save_steps(tmp_path, 1, 2, keep_last=2)
    with lease(tmp_path / CHECKPOINTS / "step_00000001"):
        save_steps(tmp_path, 3, keep_last=1)
        assert names(tmp_path) == ["step_00000001", "step_00000003"]
    save_steps(tmp_path, 4, keep_last=1)
    assert names(tmp_path) == ["step_00000004"]


def test_a_checkpoint_that_cannot_be_read_is_not_verified(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / CHECKPOINTS / "step_00000002" / "meta" / "metadata").write_text("{")
    restore(tmp_path)
    assert json.loads((tmp_path / "verified.json").read_text()) == {"step": 1}


def test_a_checkpoint_is_leased_while_its_weights_are_read(tmp_path, monkeypatch):
    save_steps(tmp_path, 1)
    seen = []
    nothing = weights.Stored(tmp_path, meta(1), TINY.model, "none", 0, {}, "ema", None)
    monkeypatch.setattr(weights, "_read_step", lambda folder, *given: seen.append(leased(folder)) or nothing)
    weights.read_run(tmp_path)
    assert seen == [True]


def test_space_is_freed_before_a_save(tmp_path):
    log = tmp_path / "logs" / "old.log"
    log.parent.mkdir()
    log.write_bytes(b"x" * 100)
    os.utime(log, (1, 1))
    config = tmp_path / "watchdog.toml"
    config.write_text(f'[limits]\nstart = 1e-9\nstop = 1e-9\n[[root]]\nkind = "logs"\npath = "{log.parent}"\n')
    with open_run(tmp_path / "run") as checkpoints:
        checkpoints.save(arrays(1), meta(1))
        checkpoints.wait()
        assert log.exists()
    with Checkpoints(tmp_path / "run", TINY.run, space_maker(str(config))) as checkpoints:
        checkpoints.save(arrays(2), meta(2))
        checkpoints.wait()
        assert not log.exists()
        assert checkpoints.fits(abstract(arrays(3)))
    with pytest.raises(FileNotFoundError):
        space_maker("/no/such.toml")


@pytest.fixture
def config(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(pause, "LOOK_S", 0.01)
    (tmp_path / "run").mkdir()
    return with_sections(TINY, data={"data": str(shards)}, run={"run_dir": str(tmp_path / "run")})


def lines(run):
    return [json.loads(line) for line in metrics_path(run).read_text().splitlines()]


def events(run):
    return [line for line in lines(run) if line.get("event") == "disk_full"]


def test_a_run_that_is_asked_to_wait_saves_waits_for_space_and_continues(config, tmp_path):
    run = tmp_path / "run"
    assert pause.ask(run, pause.Request(place=str(run), below=0.0))
    seen = []

    def make_room_later():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (metrics_path(run).exists() and events(run)):
            time.sleep(0.01)
        time.sleep(0.1)
        seen.append((names(run), leased(run / WRITER), max(line["step"] for line in lines(run))))
        pause.withdraw(run)

    other = threading.Thread(target=make_room_later)
    other.start()
    assert train(config).finished
    other.join()
    assert seen == [(["step_00000001"], True, 1)]
    (event,) = events(run)
    assert event["step"] == 1
    assert event["message"].startswith("the disk is nearly full (")
    assert 0 <= event["host/disk_free_share"] <= 1
    assert not leased(run / WRITER)


def test_a_waiting_run_can_be_stopped_and_has_saved_if_possible(config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    pause.ask(run, pause.Request(place=str(run), below=0.0))
    result = train(config, stop=StopAfter(2))
    assert (result.step, result.finished) == (1, False)
    assert names(run) == ["step_00000001"]
    monkeypatch.setattr(checkpoints.Checkpoints, "fits", lambda *given: False)
    assert train(config, stop=StopAfter(5)).step == 2
    assert len(events(run)) == 2


class Others:
    """Two more processes, one of which may be asked to wait."""

    def __init__(self, monkeypatch, *answers):
        self.asked, self._answers = 0, list(answers)
        monkeypatch.setattr(waiting.jax, "process_count", lambda: 3)
        monkeypatch.setattr(messages, "reduce", self.say)

    def say(self, topic, flag, combine):
        self.asked += 1
        return combine([flag, False, self._answers.pop(0)])


def test_several_processes_wait_and_continue_together(tmp_path, monkeypatch):
    monkeypatch.setattr(pause, "LOOK_S", 0.01)
    others = Others(monkeypatch, False, True)
    assert waiting.asked_to_wait(tmp_path, 7, 10) is None and others.asked == 0
    assert waiting.asked_to_wait(tmp_path, 10, 10) is None
    assert waiting.asked_to_wait(tmp_path, 20, 10) is not None
    others = Others(monkeypatch, True, True, False)
    waiting.wait_for_space(tmp_path, StopSignal())
    assert others.asked == 3


def test_processes_waiting_for_space_exit_together_when_one_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(pause, "LOOK_S", 0.01)
    Others(monkeypatch, *[True] * 9)
    point, asked = 3, []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda n: asked.append(n) or n == point)
    stop = StopSignal()
    assert not stop.agreed()  # after a step
    waiting.wait_for_space(tmp_path, stop)
    assert asked == [1, 2, 3]
    assert stop.agreed()  # the loop asks again, and leaves
