"""Metrics lines and the progress line."""

import io
import json
import subprocess
import sys

import pytest

from echotts.rundir.metrics import METRICS, MetricsWriter, metrics_path, timestep_bucket_names
from echotts.training.progress import Progress, duration


def lines(run_dir):
    return [json.loads(line) for line in metrics_path(run_dir).read_text().splitlines() if line]


def test_a_line_holds_time_step_process_and_the_numbers(tmp_path):
    with MetricsWriter(tmp_path, process=3) as writer:
        writer.write(7, {"loss/train": 0.1234567890123, "data/samples_seen": 56.0})
    [line] = lines(tmp_path)
    assert line["time"] > 1e9
    assert {name: line[name] for name in ("step", "process", "loss/train", "data/samples_seen")} == {
        "step": 7,
        "process": 3,
        "loss/train": 0.123456789,
        "data/samples_seen": 56,
    }


def test_a_name_that_is_not_listed_is_refused(tmp_path):
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="'loss/trian' is not listed"):
        writer.write(1, {"loss/trian": 1.0})


def test_a_number_that_is_not_finite_is_null_so_that_every_line_is_json(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss/train": float("nan"), "grad/norm": float("inf")})
    assert lines(tmp_path)[0]["loss/train"] is None
    assert lines(tmp_path)[0]["grad/norm"] is None


def test_a_resumed_run_appends_and_a_torn_line_swallows_nothing(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss/train": 1.0})
    with metrics_path(tmp_path).open("a") as file:
        file.write('{"time": 17')
    with MetricsWriter(tmp_path) as writer:
        writer.write(2, {"loss/train": 2.0})
    first, torn, second = metrics_path(tmp_path).read_text().splitlines()
    assert (json.loads(first)["step"], torn, json.loads(second)["step"]) == (1, '{"time": 17', 2)


def test_an_event_is_a_line_with_its_name_one_line_of_text_and_numbers(tmp_path):
    with MetricsWriter(tmp_path, process=2) as writer:
        writer.event(9, "resumed", "after step 9,\n 72 samples", {"data/samples_seen": 72})
    [line] = lines(tmp_path)
    assert line.pop("time") > 1e9
    assert line == {
        "step": 9,
        "process": 2,
        "event": "resumed",
        "message": "after step 9, 72 samples",
        "data/samples_seen": 72,
    }


def test_an_event_that_is_not_listed_is_refused(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="event 'exploded' is not listed"):
            writer.event(1, "exploded", "")
        with pytest.raises(ValueError, match="'loss/trian' is not listed"):
            writer.event(1, "nan", "", {"loss/trian": 1.0})
    assert lines(tmp_path) == []


def test_each_metric_is_named_group_slash_name_and_said_in_words():
    assert set(timestep_bucket_names()) < set(METRICS)
    for name, meaning in METRICS.items():
        group, _, rest = name.partition("/")
        assert group.isidentifier()
        assert rest
        assert meaning


def test_reading_the_names_imports_no_jax():
    code = "import sys, echotts.rundir.metrics; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_a_terminal_the_progress_is_plain_lines():
    stream = io.StringIO()
    with Progress(steps=200, stream=stream) as progress:
        progress.advance(10)
        progress.report(10, loss=0.51234, samples_per_s=41.26, data_wait_share=0.034, left_s=500.0)
    assert stream.getvalue() == "step 10/200: loss 0.5123, 41.3 samples/s, waiting for data 3%, 8 min left\n"


def test_on_a_terminal_the_progress_is_one_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress(steps=200, start=50, stream=stream) as progress:
        progress.advance(60)
        progress.report(60, loss=0.51234, samples_per_s=41.26, data_wait_share=0.034, left_s=500.0)
    last = stream.getvalue().split("\r")[-1]
    assert "60/200" in last
    assert "loss 0.5123" in last
    assert "\n" not in stream.getvalue().rstrip("\n")


@pytest.mark.parametrize(("seconds", "words"), [(42.4, "42 s"), (720.0, "12 min"), (12_000.0, "3 h 20 min")])
def test_durations_are_formatted_for_display(seconds, words):
    assert duration(seconds) == words
