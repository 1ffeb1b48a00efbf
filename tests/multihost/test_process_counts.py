"""A run resumes with another number of processes: bitwise the same batches, the same losses within rounding."""

import shutil
import signal

import pytest

from tests.multihost.group import Group, losses, saved_steps
from tests.multihost.test_processes import run_flags

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess, pytest.mark.timeout(1500)]


def train_a_little(folder, count, devices, flags, after):
    """Starts, runs a few steps beyond `after`, and is stopped; returns the group and the step it saved."""
    run_dir = folder / "run"
    with Group(folder / f"{count} processes", count, devices, *flags(run_dir)) as group:
        group.until_step(after + 4)
        group.send(count - 1, signal.SIGTERM)
        assert group.codes() == [75] * count, group.said()
    if after:
        assert group.said().count(f"resuming after step {after}, ") == count
    return group, saved_steps(run_dir)[-1]


def test_a_checkpoint_of_four_processes_resumes_with_two_and_with_one(
    tmp_path, shards, compile_once, monkeypatch
) -> None:
    flags = run_flags(compile_once, monkeypatch, f"--data={shards}")
    four, stop = train_a_little(tmp_path, 4, 2, flags, after=0)
    for copy in ("with two", "with one"):
        (tmp_path / copy).mkdir()
        shutil.copytree(tmp_path / "run", tmp_path / copy / "run")
    two, last_of_two = train_a_little(tmp_path / "with two", 2, 2, flags, after=stop)
    one, last_of_one = train_a_little(tmp_path / "with one", 1, 1, flags, after=stop)

    last = max(last_of_two, last_of_one)
    with Group(tmp_path / "whole", 1, 8, *flags(tmp_path / "whole" / "run")) as whole:  # which nobody interrupts
        whole.until_step(last + 1)
        whole.send(0, signal.SIGTERM)
        assert whole.codes() == [75], whole.said()
    expected = losses(tmp_path / "whole" / "run")
    batches = whole.batches()
    for group, first, end in ((four, 1, stop), (two, stop + 1, last_of_two), (one, stop + 1, last_of_one)):
        assert group.batches() == {step: batches[step] for step in range(first, end + 1)}
    for run_dir, end in ((tmp_path / "with two" / "run", last_of_two), (tmp_path / "with one" / "run", last_of_one)):
        found = losses(run_dir)
        assert sorted(found) == list(range(1, end + 1))
        assert found == pytest.approx({step: expected[step] for step in found}, rel=1e-4)
