"""Profiler traces: of the requested steps, and without affecting the run."""

import json
from pathlib import Path

import jax
import pytest

from echotts.rundir.metrics import metrics_path
from echotts.training.loop import train
from tests.tiny_training import TINY, with_sections


@pytest.fixture
def config(tmp_path, shards):
    return with_sections(TINY, data={"data": str(shards)}, run={"run_dir": str(tmp_path / "run")})


def said(run_dir: Path) -> list[tuple[int, str]]:
    found = [json.loads(line) for line in metrics_path(run_dir).read_text().splitlines()]
    return [(line["step"], line["message"]) for line in found if line.get("event") == "profile"]


def traced(folder: Path) -> set[int]:
    """The numbers of the train steps that the trace in a folder shows."""
    (path,) = folder.rglob("*.xplane.pb")
    lines = [line for plane in jax.profiler.ProfileData.from_file(str(path)).planes for line in plane.lines]
    steps = [event for line in lines for event in line.events if event.name == "train"]
    return {int(value) for event in steps for name, value in event.stats if name == "step_num"}


def test_steps_are_traced_where_set_and_where_somebody_touches_a_file(config, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    request = run_dir / "profile"
    request.touch()
    train(with_sections(config, run={"profile_step": 5, "profile_steps": 2}))
    assert not request.exists()
    (asked, asked_words), (given, given_words) = said(run_dir)
    assert (asked, given) == (3, 6)
    for first, words in ((2, asked_words), (5, given_words)):
        before, _, folder = words.partition(": ")
        assert before == f"profiler trace of steps {first} to {first + 1}"
        assert Path(folder).parent == run_dir / "profiles" / f"step_{first:08d}"
        assert traced(Path(folder)) == {first, first + 1}


def test_a_profiler_that_fails_costs_the_trace_and_not_the_run(config, tmp_path, monkeypatch):
    begun = []

    def start_trace(folder, profiler_options):
        begun.append(folder)
        if len(begun) == 1:
            raise RuntimeError("it is being profiled")

    def stop_trace():
        raise OSError("no space")

    monkeypatch.setattr(jax.profiler, "start_trace", start_trace)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop_trace)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").touch()
    assert train(with_sections(config, run={"profile_step": 4, "profile_steps": 1})).finished
    assert said(tmp_path / "run") == [
        (2, "no profiler trace: it is being profiled"),
        (4, f"no profiler trace in {begun[1]}: no space"),
    ]
