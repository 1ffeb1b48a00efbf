"""Step times and host metrics."""

import pytest

from echotts.training import vitals
from echotts.training.vitals import Pace, StepTimes, host_numbers


def test_a_step_that_takes_five_times_the_usual_is_slow_once_the_usual_is_known():
    times = StepTimes()
    assert times.add(60.0) is None  # the first ones contain nothing
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


class Device:
    def __init__(self, stats):
        self._stats = stats

    def memory_stats(self):
        return self._stats


def test_memory_in_use_is_of_the_fullest_device_and_absent_if_devices_do_not_report_it(tmp_path, monkeypatch):
    assert "device/memory_bytes" not in host_numbers(tmp_path)  # a CPU
    devices = [Device({"bytes_in_use": 3_000, "bytes_limit": 9_000}), Device({"bytes_in_use": 5_000}), Device(None)]
    monkeypatch.setattr(vitals.jax, "local_devices", lambda: devices)
    assert host_numbers(tmp_path)["device/memory_bytes"] == 5_000


def test_each_process_reports_its_lag_behind_the_furthest(monkeypatch):
    words = {}
    now = [0.0]
    monkeypatch.setattr(vitals.messages, "post", words.__setitem__)
    monkeypatch.setattr(vitals.messages, "get_below", lambda topic: words.values())
    monkeypatch.setattr(vitals.time, "monotonic", lambda: now[0])
    pace = Pace()
    pace.at(7)
    assert pace.numbers() == {} and not words  # alone
    monkeypatch.setattr(vitals.jax, "process_count", lambda: 2)
    pace.at(8)
    assert words == {"launched/0": "8"}
    assert pace.numbers() == {"host/lag_steps": 0}
    words["launched/1"] = "11"
    assert pace.numbers() == {"host/lag_steps": 3}
    pace.at(12)
    assert words["launched/0"] == "8"  # once a second is enough
    assert pace.numbers() == {"host/lag_steps": 0}  # further than the other has reported
    now[0] = 1.5
    pace.at(13)
    assert words["launched/0"] == "13"
