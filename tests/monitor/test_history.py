"""The numbers of a run: resumes, cursors, and data for charts."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.monitor import history as histories
from echotts.monitor.folders import LocalFolder
from echotts.monitor.history import Cursor, History, standing
from echotts.monitor.series import answer, smoothed, spikes
from tests.monitor.fake_run import event_line, make_run, train_line

LOSS = "loss/train"


def write(run_dir: Path, *lines: dict, host: str = "host-0") -> None:
    path = run_dir / "metrics" / f"{host}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def line(step: int, loss: float | None = 1.0, when: float | None = None, process: int = 0, **more) -> dict:
    return {"time": 1e9 + step if when is None else when, "step": step, "process": process, LOSS: loss} | more


def opened(run_dir: Path) -> History:
    history = History(LocalFolder(run_dir))
    history.refresh()
    return history


def steps_of(history: History, name: str = LOSS) -> list[int]:
    return history.points(name).steps.tolist()


def test_where_a_step_occurs_twice_the_later_line_counts(tmp_path):
    write(tmp_path, *(line(step, step) for step in range(1, 11)), *(line(step, -step) for step in range(6, 9)))
    history = opened(tmp_path)
    assert steps_of(history) == [1, 2, 3, 4, 5, 6, 7, 8]  # 9 and 10 were rolled back
    assert history.points(LOSS).values.tolist() == [1, 2, 3, 4, 5, -6, -7, -8]


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60))
def test_standing_lines_equal_a_naive_implementation(steps):
    page: list[tuple[int, int]] = []
    for place, step in enumerate(steps):
        page = [(old, at) for old, at in page if old < step] + [(step, place)]
    assert np.flatnonzero(standing(np.array(steps))).tolist() == [at for _, at in page]


def test_process_0_represents_the_run_even_if_its_host_changes(tmp_path):
    write(tmp_path, line(1, 1.0), line(2, 2.0), host="old")
    write(tmp_path, line(2, 20.0, process=1), line(3, 3.0, when=1e9 + 9), line(4, 4.0, when=1e9 + 10), host="new")
    write(tmp_path, {"time": 1e9, "step": 0, "process": -1, "host/disk_free_share": 0.5}, host="old.watchdog")
    history = opened(tmp_path)
    assert history.points(LOSS).values.tolist() == [1, 2, 3, 4]
    assert history.points("host/disk_free_share").values.tolist() == [0.5]


def test_a_cursor_returns_new_points_and_a_resume_resets_it(tmp_path):
    write(tmp_path, *(line(step) for step in range(1, 6)))
    history = opened(tmp_path)

    def ask(since):
        got = answer(history, [LOSS], "step", 100, 0.0, since)
        return got["reset"], got["series"][LOSS]["x"].tolist(), Cursor.read(got["cursor"])

    reset, steps, cursor = ask(None)
    assert (reset, steps) == (False, [1, 2, 3, 4, 5])
    assert ask(cursor)[:2] == (False, [])
    write(tmp_path, line(6), line(7))
    history.refresh()
    reset, steps, later = ask(cursor)
    assert (reset, steps) == (False, [6, 7])
    assert ask(later)[:2] == (False, [])
    write(tmp_path, line(4))
    history.refresh()
    reset, steps, last = ask(later)
    assert (reset, steps) == (True, [1, 2, 3, 4])
    write(tmp_path, line(5))
    history.refresh()
    assert ask(last)[:2] == (False, [5])
    assert ask(cursor)[:2] == (True, [1, 2, 3, 4, 5])  # an old page that was suspended
    assert ask(Cursor(10**9, 0, 1))[0]  # of a server before this one


def test_a_name_in_two_kinds_of_lines_is_one_curve(tmp_path):
    write(tmp_path, line(1), line(2, x=1), line(3))
    history = opened(tmp_path)
    assert steps_of(history) == [1, 2, 3]
    write(tmp_path, line(4, x=1), line(5))
    history.refresh()
    assert steps_of(history) == [1, 2, 3, 4, 5]
    (tmp_path / "metrics" / "host-0.jsonl").write_bytes(b"")  # replaced by one with as many lines of each kind
    write(tmp_path, line(1, 1), line(2, 1), line(3, 1, x=1), line(4, 1, x=1), line(5, 1))
    history.refresh()
    assert steps_of(history) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("how", ["cut", "rotated"])
def test_a_truncated_file_is_read_again_and_a_rotated_one_is_still_read(tmp_path, how):
    write(tmp_path, *(line(step) for step in range(1, 6)))
    history = opened(tmp_path)
    cursor = history.cursor
    path = tmp_path / "metrics" / "host-0.jsonl"
    if how == "cut":
        path.write_text("")
    else:
        os.rename(path, path.with_name("host-0.jsonl.1"))
    write(tmp_path, line(6))
    history.refresh()
    assert steps_of(history) == ([6] if how == "cut" else [1, 2, 3, 4, 5, 6])
    assert history.newer(LOSS, cursor) is None
    assert history.cuts == 1


def test_events_are_returned_once_in_order_of_reading(tmp_path):
    write(tmp_path, event_line(0, 1e9, "started", "a"), line(1))
    history = opened(tmp_path)
    assert [event.message for _, event in history.new_events(None)] == ["a"]
    cursor = history.cursor
    assert history.new_events(cursor) == []
    write(tmp_path, event_line(5, 1e9 + 5, "nan", "b", **{LOSS: 3.0}), line(6))
    history.refresh()
    [(file, event)] = history.new_events(cursor)
    assert (file.host, event.event, event.message, event.values) == ("host-0", "nan", "b", {LOSS: 3.0})
    assert steps_of(history) == [1, 5, 6]  # its numbers count like any other line's


def test_bad_lines_and_a_permanently_incomplete_line_are_counted(tmp_path, monkeypatch):
    write(tmp_path, line(1))
    with (tmp_path / "metrics" / "host-0.jsonl").open("a") as file:
        file.write('garbage\n{"time": 17')
    history = opened(tmp_path)
    assert history.bad == 1  # the half line may still be being written
    monkeypatch.setattr(histories, "HALF_LINE_S", -1.0)
    assert history.bad == 2


def test_null_is_a_gap_and_huge_numbers_are_no_trouble(tmp_path):
    write(tmp_path, line(1, 1.0), line(2, None), line(3, 3.0), line(4, 1e300))
    values = opened(tmp_path).points(LOSS).values
    assert np.isnan(values[1]) and values[[0, 2]].tolist() == [1.0, 3.0] and np.isinf(values[3])


def test_x_is_step_time_samples_or_hours_even_for_lines_without_it(tmp_path):
    for step in range(1, 11):
        write(tmp_path, line(step, **{"data/samples_seen": 32 * step, "data/audio_hours": step / 4}))
    write(tmp_path, {"time": 1e9 + 5.5, "step": 5, "process": 0, "heldout/loss": 0.5})
    write(tmp_path, {"time": 1e9 + 7, "step": 0, "process": -1, "host/cache_bytes": 1}, host="host-0.watchdog")
    history = opened(tmp_path)
    names = ["heldout/loss", "host/cache_bytes"]
    found = {
        axis: [answer(history, names, axis, 10, 0.0, None)["series"][name]["x"].tolist() for name in names]
        for axis in ("step", "time", "samples", "hours")
    }
    assert found["step"] == [[5], [7.0]]  # the watchdog's step follows from its time
    assert found["time"] == [[1e9 + 5.5], [1e9 + 7]]
    assert found["samples"][0] == [160.0]
    assert found["hours"][0] == [1.25]


def test_an_axis_that_the_run_does_not_count_is_empty(tmp_path):
    write(tmp_path, line(1))
    assert np.isnan(answer(opened(tmp_path), [LOSS], "hours", 10, 0.0, None)["series"][LOSS]["x"]).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1e6, 1e6, width=32) | st.just(float("nan")), max_size=400), st.integers(4, 60))
def test_downsampling_keeps_first_least_greatest_and_last(values, points):
    array = np.array(values, np.float32)
    kept = spikes(array, points)
    assert len(kept) <= points and np.all(np.diff(kept) > 0)
    if len(values):
        assert kept[0] == 0 and kept[-1] == len(values) - 1
    if np.isfinite(array).any():
        assert np.nanmin(array[kept]) == np.nanmin(array) and np.nanmax(array[kept]) == np.nanmax(array)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-100, 100) | st.just(float("nan")), max_size=700), st.sampled_from([0.01, 0.5, 0.9, 0.999]))
def test_the_smooth_line_is_the_debiased_exponential_average(values, weight):
    expected, average, count = [], 0.0, 0
    for value in values:
        if not np.isnan(value):
            average, count = weight * average + (1 - weight) * value, count + 1
        expected.append(np.nan if np.isnan(value) else average / (1 - weight**count))
    np.testing.assert_allclose(smoothed(np.array(values), weight), expected, rtol=1e-9, atol=1e-9)


def test_new_points_are_smoothed_as_if_all_had_been_sent(tmp_path):
    rng = np.random.default_rng(0)
    write(tmp_path, *(line(step, rng.normal()) for step in range(1, 501)))
    history = opened(tmp_path)
    cursor = history.cursor
    write(tmp_path, *(line(step, rng.normal()) for step in range(501, 511)))
    history.refresh()
    new = answer(history, [LOSS], "step", 2000, 0.9, cursor)["series"][LOSS]
    whole = answer(history, [LOSS], "step", 2000, 0.9, None)["series"][LOSS]
    assert new["x"].tolist() == list(range(501, 511))
    np.testing.assert_allclose(new["smooth"], whole["smooth"][-10:], rtol=1e-4, atol=1e-5)


def test_a_history_keeps_to_its_memory_and_loses_no_spike(tmp_path, monkeypatch):
    monkeypatch.setattr(histories, "BUDGET_BYTES", 100_000)
    losses = np.ones(20_000)
    losses[[17, 9_999, 19_990]] = [50.0, -40.0, 30.0]
    write(tmp_path, *(line(step, loss, **{"grad/norm": step}) for step, loss in enumerate(losses)))
    history = opened(tmp_path)
    assert history.bytes <= 100_000
    points = history.points(LOSS)
    assert sorted(set(points.values.tolist())) == [-40.0, 1.0, 30.0, 50.0]
    assert np.all(np.diff(points.steps) > 0) and points.steps[-1] == 19_999
    for spike, step in ((50.0, 17), (-40.0, 9_999), (30.0, 19_990)):
        [place] = points.steps[points.values == spike]
        assert abs(place - step) < 1000
    assert points.steps[-1000:].tolist() == list(range(19_000, 20_000))  # the newest are all there
    assert history.names()[LOSS] == 20_000
    cursor = history.cursor
    write(tmp_path, line(20_000))
    history.refresh()
    assert history.newer(LOSS, cursor) == 1


def test_a_preview_has_both_ends_of_a_large_run(tmp_path, monkeypatch):
    monkeypatch.setattr("echotts.monitor.lines.SAMPLE_BYTES", 2000)
    make_run(tmp_path, steps=20_000, hosts=1)
    preview = opened(tmp_path).preview()
    assert steps_of(preview)[0] <= 10 and steps_of(preview)[-1] == 20_000
    assert 50 < len(steps_of(preview)) < 1000


def test_a_file_that_names_ever_new_metrics_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(histories, "MAX_KINDS", 50)
    write(tmp_path, *({"time": 1e9, "step": 1, f"x/{number}": 1} for number in range(200)), line(5))
    history = opened(tmp_path)
    assert len(history.names()) <= 50
    assert history.bad >= 150


def test_trainer_lines_of_the_synthetic_run_are_read_completely(run_dir):
    history = opened(run_dir)
    assert history.names().keys() >= train_line(1, 0.0).keys() - {"time", "step", "process"}
    assert steps_of(history) == list(range(10, 2001, 10))
    assert history.bad == history.cuts == 0
