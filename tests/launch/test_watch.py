"""watch: preempted machines are replaced, failures retried, and manually stopped runs left alone."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from echotts.cli.app import EXIT_ASKED_TO_LEAVE
from launch.answers import ASKED_TO_LEAVE
from launch.errors import LaunchError
from launch.settings import Settings
from launch.watch import Budget
from tests.launch.conftest import World, until


@contextmanager
def watching(world: World, *flags: str) -> Iterator[list[str]]:
    """A watch in the background; yields its (out, err) after it has ended."""
    said: list[str] = []
    process = world.start("watch", "--accelerator_type", "v4-16", *flags)
    try:
        yield said
        out, err = process.communicate(timeout=180)
        said += [out, err, str(process.returncode)]
    finally:
        process.kill()
        process.wait()


def started(world: World) -> bool:
    return all(world.job(worker, "log").exists() for worker in (0, 1))


def step(world: World, worker: int) -> int:
    kept = list(Path(world.run_dir).glob(f"step-*-w{worker}"))
    return int(kept[0].read_text()) if kept else 0


def test_a_preempted_pod_is_deleted_and_made_again_and_the_run_resumes(world: World) -> None:
    world.set(creations=[["WAITING_FOR_RESOURCES", "ACTIVE"], ["WAITING_FOR_RESOURCES", "ACTIVE"]])
    with watching(world, *world.command(), "--spot") as said:
        until(lambda: step(world, 0) > 3 and step(world, 1) > 3, timeout_s=120)
        release = (world.home(0) / "echotts" / "current").readlink().name
        (world.source / "little.py").write_text("# changed here meanwhile\n")
        world.commit()
        world.set(states=["SUSPENDING", "SUSPENDING", "SUSPENDED"])
        until(lambda: len(world.calls("queued-resources", "create")) == 2, timeout_s=120)
        until(lambda: started(world) and "after step" in world.job(1, "log").read_text(), timeout_s=120)
        assert "after step 0," not in world.job(1, "log").read_text()
        assert (world.home(0) / "echotts" / "current").readlink().name == release
        world.call("stop")
    out, err, code = said
    assert code == "0"
    changes = [call[3] for call in world.calls() if call[3] in ("create", "delete")]
    assert changes == ["create", "delete", "create"]
    assert "the machines are gone (SUSPENDED); retrying" in err
    assert "SUSPENDING" in out
    assert "stopped manually: nothing left to watch" in out


def test_a_finished_run_ends_the_watch(world: World) -> None:
    with watching(world, *world.command("finish")) as said:
        pass
    assert said[2] == "0"
    assert "finished on all workers" in said[0]
    assert len(world.calls("queued-resources", "create")) == 1


def test_a_run_that_loses_a_process_is_started_again_on_all_workers(world: World) -> None:
    with watching(world, *world.command()) as said:
        until(lambda: step(world, 0) > 3 and step(world, 1) > 3, timeout_s=120)
        old = world.pid(0)
        os.killpg(world.pid(1), signal.SIGKILL)
        until(lambda: world.job(0).exists() and world.pid(0) != old, timeout_s=120)
        until(lambda: "after step" in world.job(0, "log").read_text(), timeout_s=60)
        world.call("stop")
    assert said[2] == "0"
    assert "the run ended early on worker 1; retrying" in said[1]
    assert len(world.calls("queued-resources", "create")) == 1


@pytest.mark.slow
def test_a_run_that_never_starts_uses_up_the_tries_of_a_day(world: World) -> None:
    with watching(world, *world.command("crash"), "--max_per_day", "2") as said:
        pass
    assert said[2] == "1"
    assert "retried 2 times within 24 hours (max_per_day): watch gives up" in said[1].splitlines()[-1]


@pytest.mark.slow
def test_a_run_ended_by_a_signal_is_restarted_if_the_machines_stay(world: World) -> None:
    with watching(world, *world.command()) as said:
        until(lambda: step(world, 0) > 3 and step(world, 1) > 3, timeout_s=120)
        old = world.pid(0)
        for worker in (0, 1):
            os.killpg(world.pid(worker), signal.SIGTERM)
        until(lambda: world.job(0).exists() and world.pid(0) != old, timeout_s=120)
        world.call("stop")
    assert "the run was ended by a signal; retrying" in said[1]
    assert "finished on all workers" not in said[0]


@pytest.mark.slow
def test_a_failed_creation_after_a_preemption_is_retried(world: World) -> None:
    with watching(world, *world.command()) as said:
        until(lambda: started(world), timeout_s=120)
        world.set(states=["SUSPENDED"], refusals=1)
        until(lambda: len(world.calls("queued-resources", "create")) == 3, timeout_s=120)
        until(lambda: started(world), timeout_s=120)
        world.call("stop")
    assert said[2] == "0"
    assert "RESOURCE_EXHAUSTED" in said[1]


def test_a_request_rejected_at_first_ends_the_watch_with_the_reason(world: World) -> None:
    world.set(creations=[["FAILED"]])
    with watching(world, *world.command()) as said:
        pass
    assert said[2] == "1"
    assert "pod is FAILED: Quota limit 'TPUV4' has been exceeded. (code 8)" in said[1].splitlines()[-1]
    assert not world.calls("queued-resources", "delete")


def test_a_worker_that_is_silent_for_too_long_is_lost_and_the_slice_is_replaced(world: World) -> None:
    with watching(world, *world.command(), "--lost_s", "1") as said:
        until(lambda: step(world, 0) > 3 and step(world, 1) > 3, timeout_s=120)
        (world.home(1) / "unreachable").touch()
        until(lambda: len(world.calls("queued-resources", "create")) == 2, timeout_s=120)
        until(lambda: started(world), timeout_s=120)
        world.call("stop")
    assert "counts as lost after 1 s" in said[0]
    assert "the machines are gone (no answer from worker 1 for 1 s); retrying" in said[1]
    assert [call[3] for call in world.calls() if call[3] in ("create", "delete")] == ["create", "delete", "create"]


def test_workers_that_are_all_silent_for_a_while_are_left_alone(world: World) -> None:
    with watching(world, *world.command(), "--lost_s", "1") as said:
        until(lambda: started(world), timeout_s=120)
        pid = world.pid(0)
        for worker in (0, 1):
            (world.home(worker) / "unreachable").touch()
        time.sleep(2)
        for worker in (0, 1):
            (world.home(worker) / "unreachable").unlink()
        looks = len(world.calls("tpu-vm", "ssh"))
        until(lambda: len(world.calls("tpu-vm", "ssh")) > looks + 2, timeout_s=120)
        assert world.pid(0) == pid
        world.call("stop")
    assert "no answer from worker 0, 1" in said[0]
    assert "counts as lost after 6 s" in said[0]
    assert not world.calls("queued-resources", "delete")


def test_manually_released_machines_are_not_recreated(world: World) -> None:
    with watching(world, *world.command()) as said:
        until(lambda: started(world), timeout_s=120)
        world.set(states=[])
    assert said[2] == "0"
    assert "released manually" in said[0]
    assert len(world.calls("queued-resources", "create")) == 1


def test_a_network_that_is_gone_for_a_while_touches_nothing(world: World) -> None:
    with watching(world, *world.command()) as said:
        until(lambda: started(world), timeout_s=120)
        pid = world.pid(0)
        looks = len(world.calls("queued-resources", "describe"))
        until(lambda: len(world.calls("queued-resources", "describe")) > looks + 2, timeout_s=120)
        world.set(broken="ERROR: (gcloud) could not reach metadata service")
        calls = len(world.calls("queued-resources", "describe"))
        until(lambda: len(world.calls("queued-resources", "describe")) > calls + 2, timeout_s=120)
        world.set(broken="")
        assert world.pid(0) == pid
        world.call("stop")
    assert "could not reach metadata service; retrying in" in said[1]
    assert said[0].count("running on 2 workers") == 1
    assert not world.calls("queued-resources", "delete")


def test_the_launcher_and_the_training_program_use_the_same_exit_code() -> None:
    assert str(EXIT_ASKED_TO_LEAVE) == ASKED_TO_LEAVE


def test_pauses_double_up_to_half_an_hour_and_are_short_again_after_a_steady_run() -> None:
    budget = Budget(Settings(backoff_s=60, max_per_day=9))
    assert [budget.spend(0.0, "x") for _ in range(8)] == [0, 60, 120, 240, 480, 960, 1800, 1800]
    budget.steady()
    assert budget.spend(1.0, "x") == 0
    with pytest.raises(LaunchError, match=r"x; retried 9 times within 24 hours"):
        budget.spend(2.0, "x")
    assert budget.spend(86_500.0, "x") == 60


def test_watch_in_a_dry_run_creates_nothing(world: World) -> None:
    said = world.call("watch", *world.command(), "--accelerator_type", "v4-16", "--dry_run")
    assert "queued-resources create" in said
    assert "at most 24 times a day" in said
    assert not world.calls("queued-resources", "create")
