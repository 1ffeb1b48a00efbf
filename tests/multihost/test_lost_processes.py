"""Processes that are killed, suspended or stopped: the others exit in time, and nothing is lost."""

import random
import secrets
import signal
import time

import pytest

from echotts.rundir import pause
from tests.multihost.group import MACHINE, Group, losses, metric_lines, saved_steps
from tests.multihost.test_processes import alone, run_flags, stopped_at

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

HEARTBEAT_S = 10
KILLS = 20
LONGEST_S = 6  # from the moment the processes have met to a kill at any moment


@pytest.fixture
def flags(shards, compile_once, monkeypatch):
    often = ["--run.save_every_steps=5", f"--run.heartbeat_s={HEARTBEAT_S}", "--run.join_timeout_s=60"]
    return run_flags(compile_once, monkeypatch, f"--data={shards}", *often)


def finish(folder, run_dir, flags, devices) -> Group:
    """Resumes after the newest checkpoint, runs a few steps, and is stopped."""
    whole = newest(run_dir)
    with Group(folder, 2, devices, *flags(run_dir)) as last:
        last.until_step(whole + 3)
        last.send(0, signal.SIGTERM)
        assert last.codes() == [75, 75], last.said()
    assert last.said().count(f"resuming after step {whole}, ") == 2
    return last


@pytest.mark.timeout(1200)
def test_if_one_process_is_lost_the_other_exits_in_time_and_a_restart_resumes(
    tmp_path, shards, flags, monkeypatch, capsys
) -> None:
    run_dir, groups = tmp_path / "run", []
    for number, victim in ((signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGSTOP, 0), (signal.SIGSTOP, 1)):
        before = newest(run_dir)
        with Group(tmp_path / f"{number.name} {victim}", 2, 2, *flags(run_dir)) as pair:
            pair.until_step(before + 12)
            began = time.monotonic()
            pair.send(victim, number)
            other = pair.processes[1 - victim]
            other.join((HEARTBEAT_S + 10) * MACHINE)
            took_s = time.monotonic() - began
            assert other.exitcode not in (None, 0), pair.said()
        assert took_s < (HEARTBEAT_S + 10) * MACHINE
        with capsys.disabled():
            print(f"\n{number.name} to process {victim}: the other ended with {other.exitcode} after {took_s:.1f} s")
        assert newest(run_dir) > before
        groups.append(pair)
    groups.append(finish(tmp_path / "last", run_dir, flags, 2))

    batches, expected = alone(tmp_path / "alone", shards, newest(run_dir), monkeypatch)
    for group in groups:
        for trained in group.trained():
            assert trained, group.said()
        assert all(rows == batches.get(step, rows) for step, rows in group.batches().items())
    found = losses(run_dir)
    assert {step: found[step] for step in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.timeout(2400)
def test_a_run_killed_twenty_times_is_the_run_that_nobody_killed(tmp_path, flags, capsys) -> None:
    seed = secrets.randbits(32)
    draw = random.Random(seed)
    run_dir, groups = tmp_path / "run", []
    table = [f"seed {seed}", "kill | moment | process | last step | other ended after s | newest checkpoint"]
    for number in range(1, KILLS + 1):
        before = newest(run_dir)
        victim, saving = draw.randrange(2), number % 2 == 1
        with Group(tmp_path / f"kill {number}", 2, 1, *flags(run_dir)) as pair:
            pair.until("process ")  # they have met
            if saving:
                await_save(pair, run_dir, before, draw.uniform(0, 0.05))
            else:
                time.sleep(draw.uniform(0, LONGEST_S))
            began = time.monotonic()
            pair.send(victim, signal.SIGKILL)
            assert 0 not in pair.codes((HEARTBEAT_S + 10) * MACHINE), pair.said()
        took_s = time.monotonic() - began
        check_resumed(pair, before)
        groups.append(pair)
        done = [max(steps, default=before) for steps in pair.trained()]
        moment = "while saving" if saving else "any"
        table.append(f"{number} | {moment} | {victim} | {max(done)} | {took_s:.1f} | {newest(run_dir)}")
    groups.append(finish(tmp_path / "last", run_dir, flags, 1))
    with capsys.disabled():
        print("", *table, sep="\n")

    last = newest(run_dir)
    with Group(tmp_path / "whole", 2, 1, *flags(tmp_path / "whole" / "run")) as whole:  # which nobody interrupts
        whole.until_step(last + 1)
        whole.send(0, signal.SIGTERM)
        assert whole.codes() == [75, 75], whole.said()
    batches, expected = whole.batches(), losses(tmp_path / "whole" / "run")
    for group in groups:
        assert all(rows == batches[step] for step, rows in group.batches().items() if step <= last)
    found = losses(run_dir)
    assert sorted(found)[:last] == list(range(1, last + 1))
    assert {step: found[step] for step in range(1, last + 1)} == {step: expected[step] for step in range(1, last + 1)}


def newest(run_dir) -> int:
    """The step of the newest complete checkpoint, 0 without one."""
    return max(saved_steps(run_dir), default=0)


def await_save(pair: Group, run_dir, before: int, more_s: float) -> None:
    """Returns while the second checkpoint of these processes is being written, `more_s` after its folder appeared.

    The first is not interrupted: a run that never completes its first save makes no progress.
    """
    end = time.monotonic() + 200
    while newest(run_dir) == before or not any((run_dir / "checkpoints").glob("*orbax-checkpoint-tmp*")):
        assert time.monotonic() < end, pair.said()
        time.sleep(0.001)
    time.sleep(more_s)


def check_resumed(pair: Group, before: int) -> None:
    """Each process that got that far resumed after the newest checkpoint, and found none that was incomplete."""
    assert "cannot be read" not in pair.said()
    for log in pair.logs:
        said = log.read_text()
        assert ("a new model of" not in said) if before else ("resuming" not in said), said
        assert "resuming" not in said or f"resuming after step {before}, " in said


@pytest.mark.timeout(600)
def test_processes_waiting_for_disk_space_exit_together_on_sigterm(tmp_path, flags) -> None:
    run_dir = tmp_path / "run"
    with Group(tmp_path / "pair", 2, 1, *flags(run_dir)) as pair:
        pair.until_step(3)
        assert pause.ask(run_dir, pause.Request(place=str(run_dir), below=0.0))
        end = time.monotonic() + 200
        while len(stopped_at(run_dir, "disk_full")) < 2:
            assert time.monotonic() < end, pair.said()
            time.sleep(0.1)
        began = time.monotonic()
        pair.send(1, signal.SIGTERM)
        assert pair.codes() == [75, 75], pair.said()
        assert time.monotonic() - began < 10 * MACHINE
    waited = stopped_at(run_dir, "disk_full")
    assert waited[0] == waited[1] == newest(run_dir)
    assert stopped_at(run_dir) == waited  # no step was done afterwards
    assert [line for line in metric_lines(run_dir) if "loss/train" in line][-1]["step"] == waited[0]
