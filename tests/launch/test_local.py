"""launch/local.py: the same verbs and scripts, with processes of this machine."""

import json
import os
import socket
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT, World, until
from tests.tiny_training import write_shards
from tests.training.test_command import SMALL


def local(world: World, verb: str, *flags: str, code: int = 0) -> str:
    root = ["--root", str(world.cloud / "local")]
    return world.call(verb, *root, *flags, program="local.py", code=code)


def log(world: World, worker: int) -> str:
    return (world.cloud / "local" / f"w{worker}" / "job" / "log").read_text()


@pytest.fixture
def clean(world: World):
    yield
    local(world, "down")


@pytest.mark.usefixtures("clean")
def test_the_verbs_work_on_this_machine_as_on_a_pod(world: World) -> None:
    assert "no workers here; run up first" in local(world, "sync", code=1)
    local(world, "up", "--processes", "3")
    assert "release" in local(world, "sync")
    said = local(world, "start", *world.command("finish", "words"), "--port", "4321")
    assert "started on 3 workers" in said
    for worker in range(3):
        until(lambda worker=worker: "trained 3 steps" in log(world, worker))
        told = f"'--run.coordinator', 'localhost:4321', '--run.processes', '3', '--run.process_index', '{worker}'"
        assert told in log(world, worker)
    assert local(world, "status").count("ended with exit code 0") == 3
    assert "nothing was running" in local(world, "stop")
    local(world, "down")
    assert "nothing to release" in local(world, "down")
    assert not world.calls()


def test_a_dry_run_makes_nothing(world: World) -> None:
    assert "+ mkdir" in local(world, "up", "--dry-run")
    assert not (world.cloud / "local").exists()
    assert "processes 0: must be at least 1" in local(world, "up", "--processes", "0", code=2)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("clean")
def test_the_training_program_runs_as_two_processes_stops_and_resumes(world: World, tmp_path) -> None:
    shards = write_shards(tmp_path / "shards", shards=8, samples=6)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = ("--port", str(free.getsockname()[1]))
    config = tmp_path / "local.ini"
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    run_dir = tmp_path / "trained"
    config.write_text(
        f"[launch]\ncommand = train_pretrain.py --data {shards} --run_dir {run_dir} --steps 4000 {SMALL}\n"
        f"[env]\nJAX_PLATFORMS = cpu\nJAX_COMPILATION_CACHE_DIR = {cache}\nOMP_NUM_THREADS = 1\n"
    )
    flags = ("--config", str(config), "--source", str(ROOT), *port)
    local(world, "up")
    local(world, "sync", *flags)

    def train_to(words: str) -> list[int]:
        local(world, "start", *flags)
        for worker in (0, 1):
            until(lambda worker=worker: words in log(world, worker), timeout_s=400)
        assert "worker 0, 1: stopped" in local(world, "stop", "--grace_s", "300")
        last = [log(world, worker).splitlines()[-1] for worker in (0, 1)]
        assert all(line.startswith("stopped and saved after step") for line in last), last
        return [int(path.name.split("_")[1]) for path in sorted((Path(run_dir) / "checkpoints").iterdir())]

    first = train_to("step 2/4000: loss")
    second = train_to("resuming after step")
    assert len(first) == 1
    assert second[-1] > first[-1]
    (metrics,) = (run_dir / "metrics").glob("*.jsonl")
    assert {json.loads(line)["process"] for line in metrics.read_text().splitlines()} == {0, 1}
