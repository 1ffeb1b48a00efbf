"""Step times and what the machine says."""

import pytest

from echotts.training.vitals import StepTimes, host_numbers


def test_a_step_that_takes_five_times_the_usual_is_slow_once_the_usual_is_known():
    times = StepTimes()
    assert times.add(60.0) is None  # the first ones tell nothing
    assert [times.add(1.0) for _ in range(10)] == [None] * 10
    assert times.add(4.9) is None
    assert times.add(5.1) == 1.0
    assert times.numbers()["time/step_p50_s"] == 1.0


def test_milliseconds_are_never_slow():
    times = StepTimes()
    assert {times.add(0.001) for _ in range(20)} | {times.add(0.9)} == {None}


def test_percentiles_are_of_the_steps_since_the_last_line():
    times = StepTimes()
    assert times.numbers() == {}
    for seconds in range(101):
        times.add(float(seconds))
    assert times.numbers() == {"time/step_p50_s": 50.0, "time/step_p95_s": 95.0}
    assert times.numbers() == {}


def test_the_disk_of_the_run_is_measured(tmp_path):
    numbers = host_numbers(tmp_path)
    assert 0 < numbers["host/disk_free_share"] < 1
    assert numbers["host/disk_free_bytes"] > 0
    assert numbers["host/memory_bytes"] == pytest.approx(1e9, rel=20)
