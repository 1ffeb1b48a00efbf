"""Large files, read in parts by processes of their own."""

import itertools
import json
import os

import numpy as np
import pytest

from echotts.monitor import digest
from echotts.monitor import history as histories
from echotts.monitor.columns import Columns, halved, standing
from echotts.monitor.folders import LocalFolder
from echotts.monitor.history import History
from echotts.monitor.parsing import Table
from tests.monitor.fake_run import event_line

LINES = 60_000
SPIKES = {1_234: 50.0, 31_007: -40.0, 58_000: 30.0}


@pytest.fixture(scope="module")
def large_run(tmp_path_factory):
    """Lines of two kinds, a bad one, an event, and a half line at the end."""
    run_dir = tmp_path_factory.mktemp("large")
    (run_dir / "metrics").mkdir()
    with (run_dir / "metrics" / "host-0.jsonl").open("w") as file:
        for step in range(1, LINES + 1):
            loss = SPIKES.get(step, 1.0)
            file.write(
                f'{{"time": {1_000_000 + step}, "step": {step}, "process": 0, "loss/train": {loss}, "x": {step}}}\n'
            )
            if step % 1000 == 0:
                file.write(f'{{"time": {1_000_000 + step}.5, "step": {step}, "process": 0, "heldout/loss": {step}}}\n')
        file.write(json.dumps(event_line(LINES, 1_000_000 + LINES + 1, "stopped", "enough")) + "\n")
        file.write('garbage\n{"time": 1')
    return run_dir


def opened(run_dir) -> History:
    history = History(LocalFolder(run_dir))
    history.refresh()
    return history


def in_parts(run_dir, monkeypatch, budget: int) -> History:
    monkeypatch.setattr(histories, "BUDGET_BYTES", budget)
    monkeypatch.setattr(histories, "LARGE_BYTES", 1 << 20)
    monkeypatch.setattr(digest, "PART_BYTES", 1 << 20)
    return opened(run_dir)


def test_what_is_read_in_parts_is_what_is_read_in_one_go(large_run, monkeypatch):
    whole = opened(large_run)
    parts = in_parts(large_run, monkeypatch, histories.BUDGET_BYTES)
    assert parts.names() == whole.names() == {"loss/train": LINES, "x": LINES, "heldout/loss": LINES // 1000}
    for name in whole.names():
        for one, other in zip(parts.points(name), whole.points(name), strict=True):
            np.testing.assert_array_equal(one, other)
    assert [event for _, event in parts.events] == [event for _, event in whole.events]
    assert parts.bad == whole.bad == 1
    assert not parts.is_thinned


def test_a_large_file_keeps_to_the_memory_it_may_take_and_loses_no_spike(large_run, monkeypatch):
    history = in_parts(large_run, monkeypatch, 400_000)
    assert history.is_thinned and 100_000 < history.bytes <= 400_000
    points = history.points("loss/train")
    assert set(points.values.tolist()) == {1.0, *SPIKES.values()}
    for step, spike in SPIKES.items():
        assert abs(points.steps[points.values == spike][0] - step) < 64
    assert history.names()["loss/train"] == LINES  # how many there were
    assert len(history.points("heldout/loss").steps) == LINES // 1000  # rare lines are all kept


def test_what_is_written_after_the_parts_were_read_is_new(large_run, tmp_path, monkeypatch):
    (tmp_path / "metrics").mkdir()
    path = tmp_path / "metrics" / "host-0.jsonl"
    path.write_bytes((large_run / "metrics" / "host-0.jsonl").read_bytes())
    history = in_parts(tmp_path, monkeypatch, histories.BUDGET_BYTES)
    cursor = history.cursor
    with path.open("a") as file:
        file.write(f'\n{{"time": 2000000, "step": {LINES + 5}, "process": 0, "loss/train": 2.0, "x": 1}}\n')
    history.refresh()
    assert history.newer("loss/train", cursor) == 1 and history.bad == 2  # the half line never became whole
    os.truncate(path, 1000)
    history.refresh()
    assert history.cuts == 1 and 0 < history.names()["loss/train"] < 20


def test_where_no_process_can_be_started_the_file_is_read_all_the_same(large_run, monkeypatch, caplog):
    monkeypatch.setattr(digest.sys, "executable", "/bin/false")
    assert in_parts(large_run, monkeypatch, histories.BUDGET_BYTES).names()["x"] == LINES
    assert "reading it in this process instead" in caplog.text


def test_old_parts_are_thinned_alike_however_long_the_run():
    columns = Columns(0, ("x",))
    for start in range(0, 400_000, 1000):
        steps = np.arange(start, start + 1000)
        columns.extend(steps.astype(float), steps, steps[None].astype(float))
        while columns.rows > 10_000:
            assert columns.thin()
    shown = np.histogram(columns.steps, bins=20, range=(0, 400_000))[0]
    assert shown.min() > 60  # no stretch of the run has faded
    assert columns.steps[-2000:].tolist() == list(range(398_000, 400_000))
    assert columns.rows + columns.thinned == 400_000
    assert (np.diff(columns.steps) > 0).all()


def test_what_a_resume_took_back_does_not_count_after_thinning_either():
    columns = Columns(0, ("x",))
    steps = np.concatenate([np.arange(1000), np.arange(500, 3000)])
    columns.extend(steps.astype(float), steps, steps[None].astype(float))
    assert columns.thin()
    counting = columns.standing
    assert not isinstance(counting, slice)
    assert counting.tolist() == np.flatnonzero(standing(columns.steps)).tolist()
    assert columns.rows > len(counting) > 1000


def test_what_is_left_over_of_a_part_is_thinned_like_the_rest():
    part = digest.Part(thinned=3)
    for start in range(0, 25_000, 1000):
        steps = np.arange(start, start + 1000, dtype=np.int32)
        part.take(Table(0, ("x",), steps.astype(float), steps, steps[None].astype(float)))
    [(columns, _)] = part.columns()
    assert columns.rows + columns.thinned == 25_000
    assert columns.rows < 25_000 / 8 + 16
    assert columns.steps[-1] == 24_999 and (np.diff(columns.steps) > 0).all()


def test_of_four_values_the_least_and_the_greatest_stay_in_their_order():
    for four in itertools.product(range(4), repeat=4):
        least, most = min(four), max(four)
        expected = [most, least] if four.index(most) < four.index(least) else [least, most]
        assert halved(np.array(four, np.float32), spikes=True).tolist() == expected, four


def test_a_gap_among_four_values_hides_none():
    nan = np.nan
    values = np.array([nan, 3, 1, nan, nan, nan, nan, nan, nan, nan, 2, nan], np.float32)
    np.testing.assert_array_equal(halved(values, spikes=True), np.array([3, 1, nan, nan, 2, 2], np.float32))
