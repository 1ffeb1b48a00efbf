"""Bad steps: skipped while there are few, else the run rolls back, and stops if that does not help."""

import json
import math
import signal
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from echotts.checkpoint import guard as module
from echotts.checkpoint.checkpoints import Checkpoints
from echotts.checkpoint.contents import read_meta, step_folders
from echotts.checkpoint.guard import Guard, NonFiniteError, describe
from echotts.checkpoint.weights import load_run
from echotts.data.stream.stream import Stream
from echotts.multihost.hang import HangWatch
from echotts.rundir.layout import CHECKPOINTS
from echotts.rundir.metrics import MetricsWriter, metrics_path
from echotts.training import mesh as meshes
from echotts.training.feed import Fed, Feed
from echotts.training.inputs import open_inputs
from echotts.training.loop import train
from echotts.training.progress import Progress
from echotts.training.report import LINE, Reporter
from echotts.training.start import roll_back
from echotts.training.state import TrainState
from echotts.training.step import TrainStep
from tests.multihost.group import Group, losses, metric_lines, poisoned
from tests.multihost.test_processes import run_flags
from tests.tiny_training import TINY, random_batch, with_sections
from tests.training.test_loop import StopAfter, assert_same_weights, events, lines


def guard_of(**run) -> Guard:
    return Guard(with_sections(TINY, run=run).run)


def test_the_limit_is_a_multiple_of_the_usual_once_enough_steps_counted():
    guard = guard_of(spike_factor=3.0)
    for step in range(1, 33):
        guard.counted(step, 2.0 if step < 32 else 1e6)
        assert guard.limit(step + 1) == math.inf
    assert guard.limit(34) == 6.0  # of the last 32, one of them an outlier
    for step in range(33, 400):
        guard.counted(step, 0.5)
    assert guard.limit(401) == 1.5
    assert len(json.dumps(guard.state())) < 4000


def test_the_limit_does_not_depend_on_whether_the_previous_step_is_settled():
    early, late = guard_of(), guard_of()
    errors = 1 + np.arange(300) % 7 / 10
    for step, error in enumerate(errors.tolist(), 1):
        before = early.limit(step + 1)
        early.counted(step, error)  # as if a save had waited for it
        assert early.limit(step + 1) == before == late.limit(step + 1)
        late.counted(step, error)


@pytest.mark.parametrize("run", [{"skips": 0}, {"spike_factor": 0.0}])
def test_no_step_is_a_spike_if_detection_is_off(run):
    guard = guard_of(**run)
    for step in range(1, 100):
        guard.counted(step, 1.0)
    assert guard.limit(100) == math.inf


def test_skips_are_counted_within_their_window():
    guard = guard_of(skips=2, skip_window=10)
    for step in (5, 14, 15, 24):
        guard.skip(step, "why")
        assert not guard.lost(step + 1)
    assert guard.skip(25, "why") == "2 skipped within 10 steps, at most 2 are allowed"
    guard.skip(26, "why")
    assert not guard.lost(26)  # which looks at the steps before
    assert guard.lost(27)


def test_the_history_survives_a_checkpoint():
    guard = guard_of(skips=2, skip_window=10)
    for step in range(1, 50):
        guard.counted(step, 1 / step)
    guard.skip(50, "why")
    again = Guard(with_sections(TINY, run={"skips": 2, "skip_window": 10}).run, json.loads(json.dumps(guard.state())))
    assert (again.state(), again.limit(52)) == (guard.state(), guard.limit(52))
    for step in (51, 52):
        again.skip(step, "why")
    assert again.lost(53)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"skips": 5, "skip_window": 5}, "skips 5 must be at least 0 and below skip_window 5"),
        ({"rollbacks": -1}, "rollbacks -1 at least 0"),
        ({"spike_factor": 0.5}, r"spike_factor 0\.5 must be above 1, or 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        with_sections(TINY, run=keys)


def test_a_bad_step_is_described_with_its_worst_rows_first():
    said = describe(7, math.nan, 1.5, np.array([0.1, 7, np.nan, 9.0]), ["a", "b", "c"], [0, 2, 3])
    assert said == ("step 7: loss nan, gradient norm 1.5; non-finite rows: b; batch keys, worst first: b, c, a")


@pytest.fixture
def config(tmp_path, shards):
    """Six steps as in the other tests, of which one in four may be skipped; one good step defines the median."""
    return with_sections(TINY, data={"data": str(shards)}, run={"skips": 1, "skip_window": 4})


@pytest.fixture
def poison(monkeypatch):
    """poison({step: factor}) multiplies the latents of these steps' batches, however often the run is started."""
    monkeypatch.setattr(module, "KNOWN_STEPS", 1)
    factors = {}
    monkeypatch.setattr(Stream, "next", poisoned(Stream.next, factors))
    return factors.update


def said(run_dir):
    found = [json.loads(line) for line in metrics_path(run_dir).read_text().splitlines()]
    return {(line["step"], line["event"]): line["message"] for line in found if "event" in line}


def test_bad_steps_are_skipped_and_after_too_many_the_run_rolls_back_and_continues_with_new_data(
    config, tmp_path, poison
):
    poison({3: 1e3, 4: np.nan})
    whole, parts = (with_sections(config, run={"run_dir": str(tmp_path / name)}) for name in ("whole", "parts"))
    assert train(with_sections(whole, run={"keep_last": 9})).finished
    happened = said(tmp_path / "whole")
    expected = [(0, "started"), (3, "spike"), (3, "skipped"), (4, "nan"), (4, "skipped"), (5, "rolled_back")]
    assert events(tmp_path / "whole") == [*expected, (6, "finished")]
    assert happened[3, "skipped"].startswith("1 skipped within 4 steps, at most 1 are allowed; error ")
    assert "batch keys, worst first: s-00" in happened[3, "spike"]
    assert "non-finite rows: s-00" in happened[4, "nan"]
    back = "rolled back to the weights of step 2, losing 3 updates; the data continues; rollback 1 of at most 5; "
    assert happened[5, "rolled_back"].startswith(back)
    folders = {int(folder.name[-8:]): folder for folder in step_folders(tmp_path / "whole" / CHECKPOINTS)}
    assert_same_weights(load_run(folders[5]), load_run(folders[2]))
    assert read_meta(folders[5]).stream["step"] == 5
    remembered = read_meta(folders[5]).guard
    assert (remembered["rollbacks"], remembered["skipped"]) == (1, [])
    assert [step for step, _ in remembered["errors"]] == [1, 2]

    assert train(parts, stop=StopAfter(3)).step == 3  # in the middle of it
    assert train(parts).finished
    assert_same_weights(load_run(tmp_path / "parts", "raw"), load_run(tmp_path / "whole", "raw"))
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert list(lines(tmp_path / "parts")) == [1, 2, 3, 4, 5, 6]
    assert [step for step, loss in lines(tmp_path / "parts").items() if loss is None] == [4]
    newest = [read_meta(step_folders(tmp_path / name / CHECKPOINTS)[0]) for name in ("whole", "parts")]
    assert newest[0].guard == newest[1].guard


def test_a_run_that_has_saved_nothing_goes_back_to_the_weights_it_was_given(config, tmp_path, poison, uninterrupted):
    poison({3: np.nan, 4: np.nan})
    given = {"init_from": str(uninterrupted), "save_every_steps": 0, "run_dir": str(tmp_path / "run")}
    assert train(with_sections(config, run=given)).finished
    happened = said(tmp_path / "run")
    back = "rolled back to the weights that the run started with, losing 5 updates; the data continues; rollback 1 "
    assert happened[5, "rolled_back"].startswith(back)
    assert lines(tmp_path / "run")[6] is not None
    last, again = step_folders(tmp_path / "run" / CHECKPOINTS)
    assert [folder.name for folder in (last, again)] == ["step_00000006", "step_00000005"]
    for weights in ("raw", "ema"):
        assert_same_weights(load_run(again, weights), load_run(uninterrupted, "ema"))


def test_a_bad_row_of_an_accumulated_step_is_named_and_skipped_in_the_same_way(config, tmp_path, poison):
    poison({3: np.nan, 4: np.nan})
    config = with_sections(config, optim={"accumulation": 2}, run={"run_dir": str(tmp_path), "keep_last": 9})
    assert train(config).finished
    happened = said(tmp_path)
    batches = poisoned_keys(config)
    for step in (3, 4):
        assert f"non-finite rows: {batches[step]}; " in happened[step, "nan"]
    assert happened[5, "rolled_back"].startswith("rolled back to the weights of step 2, losing 3 updates")
    assert [step for step, loss in lines(tmp_path).items() if loss is None] == [3, 4]
    folders = {int(folder.name[-8:]): folder for folder in step_folders(tmp_path / CHECKPOINTS)}
    assert_same_weights(load_run(folders[5]), load_run(folders[2]))


def poisoned_keys(config):
    """step -> the key of the row that is poisoned in it"""
    with open_inputs(config).stream as stream:
        return {step: stream.next()[1][2] for step in range(1, 7)}


class NoneBefore(Checkpoints):
    """A run directory that has nothing from before the trouble, and perhaps something later."""

    def __init__(self, later):
        self._later = later

    def wait(self):
        pass

    def restore(self, abstract, config, before=None):
        assert before == 5

    def has_any(self):
        return self._later


@pytest.mark.parametrize(
    ("run", "later", "reason"),
    [
        ({}, True, "there is no earlier checkpoint to roll back to: look at these samples"),
        ({"rollbacks": 0}, False, r"the run has rolled back 0 times \(run\.rollbacks\): look at these samples"),
        ({"init_from": "/gone"}, False, "the initial weights are unavailable: /gone: no weights found"),
    ],
)
def test_where_the_run_cannot_go_back_it_stops_with_the_names_of_the_samples(run, later, reason):
    config = with_sections(TINY, run={"skips": 1, "skip_window": 8, **run})
    guard = Guard(config.run)
    for step in (5, 6):
        guard.skip(step, f"step {step}: loss nan; batch keys: a, b")
    state = TrainState(step=jnp.int32(6), params={}, ema={}, opt_state={})
    why = "2 steps were skipped from 5 on, the last because of step 6: loss nan; batch keys: a, b; "
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(NonFiniteError, match=f"^{why}{reason}"):
        roll_back(guard, state, 7, config, mesh, NoneBefore(later), lambda: pytest.fail("there is no voice to train"))


class NoFeed(Feed):
    """A feed without a stream."""

    def __init__(self):
        self.waited_s = 0.0

    def on_retry(self, listener):
        pass


def test_a_step_whose_weights_are_not_finite_ends_the_run_before_anything_is_saved(tmp_path):
    step = TrainStep(SimpleNamespace(_cache_size=lambda: 1), {})
    guard, watch = Guard(TINY.run), HangWatch(0.0, 1.0)
    fed = Fed(random_batch(), ["a"], [0], TINY.data.buckets[0], {}, 1)
    numbers: dict[str, Any] = dict.fromkeys((*LINE, "error", "good", "finite"), jnp.float32(1))
    numbers["param_norm"] = jnp.float32(np.inf)
    with MetricsWriter(tmp_path) as writer, Progress(steps=6) as progress:
        reporter = Reporter(TINY, writer, progress, NoFeed(), step, guard, watch, start=0)
        reporter.launched(1, 8, fed, numbers)
        said = "step 1: the norm of the weights is inf; the run stops without saving"
        with pytest.raises(NonFiniteError, match=said), reporter.pause():
            pytest.fail("saved")
    assert events(tmp_path) == [(1, "nan")]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_rows_of_one_process_make_all_skip_and_go_back_together(tmp_path, shards, compile_once, monkeypatch):
    run_dir = tmp_path / "run"
    few = ["--run.skips=1", "--run.skip_window=4", "--run.save_every_steps=2"]
    flags = run_flags(compile_once, monkeypatch, f"--data={shards}", *few)(run_dir)
    with Group(tmp_path, 2, 1, *flags, poisons={1: {3: math.nan, 4: math.nan}}) as pair:
        pair.until_step(8)
        pair.send(0, signal.SIGTERM)
        assert pair.codes() == [75, 75], pair.said()
    found = [line for line in metric_lines(run_dir) if line.get("event") in ("nan", "skipped", "rolled_back")]
    for process in (0, 1):
        mine = [line for line in found if line["process"] == process]
        happened = [(line["step"], line["event"]) for line in mine]
        assert happened == [(3, "nan"), (3, "skipped"), (4, "nan"), (4, "skipped"), (5, "rolled_back")]
        assert ("non-finite rows: s-00" in mine[0]["message"]) == (process == 1)
        assert mine[-1]["message"].startswith("rolled back to the weights of step 2, losing 3 updates")
    assert all(loss is None for step, loss in losses(run_dir).items() if step in (3, 4))
    assert all(loss is not None for step, loss in losses(run_dir).items() if step > 4)
