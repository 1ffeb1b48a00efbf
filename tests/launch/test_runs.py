"""start, status, logs and stop, with processes that really run."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.conftest import World, until


def log(world: World, worker: int) -> str:
    return world.job(worker, "log").read_text()


def runs(world: World, worker: int) -> bool:
    status = Path(f"/proc/{world.pid(worker)}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_run_is_started_detached_once_and_stopped_with_its_checkpoint(world: World, tmp_path) -> None:
    release = world.ready()
    config = tmp_path / "pod.ini"
    config.write_text("[launch]\naccelerator_type = v4-16\n[env]\nGREETING = a 'b' $HOME secret-word\n")
    flags = ["--config", str(config), *world.command("run", "'two words'", "$HOME")]
    said = world.call("start", *flags)
    assert f"release {release}, started on 2 workers" in said
    assert runs(world, 0)
    assert runs(world, 1)
    assert len({world.job(worker).read_text().split()[2] for worker in (0, 1)}) == 1
    first = log(world, 1)
    assert "words ['two words', '$HOME', '--run.coordinator', 'auto']" in first
    assert "greeting \"a 'b' $HOME secret-word\"" in first
    assert "secret-word" not in (world.cloud / "calls.jsonl").read_text()

    pids = [world.pid(worker) for worker in (0, 1)]
    assert "is already running on all workers" in world.call("start", *flags)
    assert [world.pid(worker) for worker in (0, 1)] == pids

    status = world.call("status")
    assert "worker 1 t1v-n-fake-w-1: run " in status
    assert f"running, release {release}, " in status

    assert "worker 0, 1: stopped" in world.call("stop")
    assert not runs(world, 0)
    assert log(world, 0).splitlines()[-1].startswith("stopped and saved after step ")
    assert "worker 0, 1: nothing was running" in world.call("stop")
    assert "ended with exit code 75 (ended by a signal)" in world.call("status")

    world.call("start", *flags)
    assert "after step 0" not in log(world, 0)  # it continues from where it was
    left = [name for name in ("exit", "stopped") if world.job(0, name).exists()]
    assert not left  # from which a watch would conclude that it has ended, or was stopped on purpose


def test_the_installed_commands_name_works_in_a_command_too(world: World) -> None:
    (world.source / "echotts").mkdir()
    (world.source / "echotts" / "__init__.py").touch()
    (world.source / "echotts" / "__main__.py").write_text("import sys, signal; print(sys.argv[1:]); signal.pause()\n")
    world.commit()
    world.call("up", "--accelerator_type", "v4-16")
    world.call("sync")
    world.call("start", "--command", "echotts train --data 'a b'", "--watchdog", "echotts watchdog")
    assert "['train', '--data', 'a b', '--run.coordinator', 'auto']" in log(world, 1)
    assert "['watchdog']" in (world.home(1) / "echotts" / "logs" / "watchdog.w1.log").read_text()


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace_period(world: World) -> None:
    world.ready()
    world.call("start", *world.command("deaf"))
    assert "worker 0, 1: did not end within 1 s, killed" in world.call("stop", "--grace_s", "1")
    assert not runs(world, 0)
    assert "died" in world.call("status")


def test_a_program_that_ends_at_once_is_reported_and_the_others_are_stopped(world: World) -> None:
    world.ready()
    said = world.call("start", *world.command("crash"), code=1)
    assert "ended with exit code 1" in said
    assert "ran into a wall" in said
    assert "ended immediately on worker 0, 1: see logs" in said


def test_a_worker_that_hangs_is_named_though_gcloud_waits_for_it(world: World, monkeypatch) -> None:
    world.ready()
    (world.home(1) / "hangs").touch()
    monkeypatch.setattr("launch.verbs.QUICK_S", 3)
    said = world.call("status", code=1)
    assert "status: no answer from worker 1; last output: cut off after 3 s" in said


def test_logs_are_prefixed_with_their_worker(world: World) -> None:
    world.ready()
    assert "w1 | no log on worker 1 yet" in world.call("logs")
    world.call("start", *world.command("finish"), "--settle_s", "1")
    until(lambda: "trained 3 steps" in log(world, 1))
    said = world.call("logs", "--lines", "1")
    said_by_workers = [line for line in said.splitlines() if "Using ssh" not in line]
    assert sorted(said_by_workers) == ["w0 | trained 3 steps", "w1 | trained 3 steps"]
    assert world.call("logs", "--worker", "1", "--lines", "1").count("trained") == 1
    assert "worker '7': give all, or a number from 0 to 1" in world.call("logs", "--worker", "7", code=2)


def test_following_a_log_shows_new_lines(world: World) -> None:
    world.ready()
    world.call("start", *world.command())
    following = world.start("logs", "--follow", "--worker", "0")
    assert following.stdout is not None
    until(lambda: "after step" in following.stdout.readline())
    world.call("stop")
    until(lambda: "stopped and saved" in following.stdout.readline())
    following.send_signal(signal.SIGINT)
    assert following.wait(timeout=20) == 130


def test_the_watchdog_runs_on_all_and_the_dashboard_on_one(world: World) -> None:
    world.ready()
    both = ["--watchdog", "little.py", "--dashboard_command", "little.py x", "--dashboard"]
    world.call("start", *world.command("run", "--run-dir=gs://b/r"), *both)
    status = world.call("status")
    assert status.count("running, watchdog") == 2
    assert status.count(", dashboard") == 1
    assert "command=(little.py x --run_dir gs://b/r)" in world.job(0, "dashboard.sh").read_text()
    assert "command=(little.py)" in world.job(1, "watchdog.sh").read_text()  # a bucket takes no space on this disk
    os.killpg(int(world.job(1, "watchdog.pid").read_text().split()[0]), signal.SIGKILL)
    world.call("start", *world.command("run", "--run_dir", "r"), *both)  # which starts what is missing
    assert world.call("status").count("running, watchdog") == 2
    assert "command=(little.py --run_dir r)" in world.job(1, "watchdog.sh").read_text()
    world.call("stop")
    assert "running" not in world.call("status")


def test_a_run_on_some_workers_only_is_refused_and_nothing_is_started(world: World) -> None:
    world.ready()
    world.call("start", *world.command())
    os.killpg(world.pid(1), signal.SIGKILL)
    said = world.call("start", *world.command(), code=1)
    assert "a run is alive on some workers only" in said
    assert not runs(world, 1)


def test_starting_without_code_without_command_or_with_half_a_dashboard_is_one_line(world: World) -> None:
    world.call("up", "--accelerator_type", "v4-16")
    assert "no code yet; run sync first" in world.call("start", *world.command(), code=1)
    assert "command is missing" in world.call("start", code=2)
    assert "the command has no --run_dir" in world.call("start", *world.command(), "--dashboard", code=2)


def test_a_dry_run_of_start_and_stop_changes_nothing(world: World) -> None:
    world.ready()
    said = world.call("start", *world.command(), "--dry_run")
    for step in ("worker/preflight.sh", "tpu-vm scp", "worker/start.sh"):
        assert step in said
    assert not world.job(0).exists()
    assert "worker/stop.sh" in world.call("stop", "--dry_run")


def test_code_changed_since_the_last_sync_gives_a_warning(world: World) -> None:
    release = world.ready()
    (world.source / "little.py").write_text("pass\n")
    newer = world.commit()
    assert f"the workers have release {release}, but the local files are {newer}" in world.call(
        "start", *world.command()
    )


def test_a_reused_process_id_is_not_mistaken_for_the_run(world: World) -> None:
    world.ready()
    world.call("start", *world.command())
    world.call("stop")
    _, _, run, release = world.job(0).read_text().split()
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as other:
        world.job(0).write_text(f"{other.pid} 1 {run} {release}\n")
        assert "nothing was running" in world.call("stop")
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("words", ["train_pretrain.py run 'x", 'train_pretrain.py run "x'])
def test_a_command_with_an_open_quote_is_one_line(world: World, words) -> None:
    assert "command: No closing quotation" in world.call("start", "--command", words, code=2)
