"""Mounts below roots, deep trees, unusual files, partial checkpoints: needed files are kept."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from echotts.disk import runs
from echotts.disk.scan import live_runs
from echotts.disk.settings import Root, default_settings, with_live_runs
from echotts.disk.watchdog import Watchdog, make_space
from echotts.rundir.layout import writing
from echotts.rundir.leases import FOLDER_NAME, live_names
from tests.disk.layout import aged, hub_revision, run_dir, settings, steps, write


@contextmanager
def bind_mount(source, target):
    """`source` is seen at `target`, too: the same filesystem, another mount."""
    done = subprocess.run(["mount", "--bind", source, target], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


def cleaned(*roots, **limits):
    """The deletions of a pass."""
    return [action.path for action in Watchdog(settings(*roots, **limits)).run_pass()]


def test_nothing_below_a_bind_mount_of_the_same_filesystem_is_deleted(tmp_path):
    precious = write(tmp_path / "elsewhere" / "precious.log", age_h=900)
    root = tmp_path / "logs"
    write(root / "old.log", age_h=900)
    (root / "mounted").mkdir()
    with bind_mount(tmp_path / "elsewhere", root / "mounted"):
        assert cleaned(Root(kind="logs", path=root, names=("*",))) == [root / "old.log"]
        assert precious.exists()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_tree_containing_a_mount_is_kept_with_a_warning(tmp_path, caplog, kind):
    root = tmp_path / "staging"
    outside = write(tmp_path / "outside" / "data", age_h=900)
    inside = write(root / "half.partial" / "b" / "data", age_h=900)
    write(root / "half.partial" / "a", age_h=900)
    target = inside.parent if kind == "folder" else inside
    aged(root / "half.partial", 900)
    with bind_mount(outside.parent if kind == "folder" else outside, target):
        assert cleaned(Root(kind="partial", path=root)) == []
        assert (root / "half.partial" / "a").exists() and outside.exists()
        assert "is a mount point" in caplog.text
    assert cleaned(Root(kind="partial", path=root)) == [root / "half.partial"]


def test_a_mount_in_a_checkpoint_or_a_cached_repository_keeps_it(tmp_path):
    outside = write(tmp_path / "outside" / "data", age_h=900)
    run, cache = run_dir(tmp_path / "runs" / "a", 1, 2, 3, 4, keep_last=1), tmp_path / "hub"
    hub_revision(cache, "org/one", "a" * 40, {"w": b"a"}, age_h=900)
    extra = cache / "models--org--one" / "blobs" / "mounted"
    extra.mkdir()
    with (
        bind_mount(outside.parent, run / "checkpoints" / "step_00000002" / "params" / "d"),
        bind_mount(outside.parent, extra),
    ):
        went = cleaned(Root(kind="runs", path=run.parent), Root(kind="hub", path=cache))
        assert {path.name for path in went} == {"step_00000001", "step_00000003"}
        assert outside.exists() and (cache / "models--org--one" / "snapshots" / ("a" * 40)).exists()


def test_folders_nested_1500_deep_neither_end_the_watch_nor_are_half_deleted(tmp_path, caplog):
    root = tmp_path / "staging"
    deep = root / "deep.partial"
    deep.mkdir(parents=True)
    here = os.open(deep, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    os.utime(deep, (1, 1))
    write(root / "other.partial", age_h=900)
    try:
        assert cleaned(Root(kind="partial", path=root)) == [root / "other.partial"]
        assert deep.exists()
        assert "deep.partial: not deleted: folders are nested more than 64 deep" in caplog.text
    finally:  # pytest's own cleanup would reach the recursion limit
        subprocess.run(["rm", "-rf", deep], check=True)


DEEP = b"[" * 5000 + b"]" * 5000


@pytest.mark.parametrize(
    "content",
    [DEEP, b'{"run": ' + DEEP + b"}", b"[1, 2]", b'{"run": 3}', b"\xff\xfe", b'{"run": {"keep_last": "many"}}', b""],
)
@pytest.mark.parametrize("name", ["config.json", "verified.json", "checkpoints/step_00000003/meta/metadata"])
def test_a_bad_small_file_of_one_run_keeps_it_and_the_others_are_cleaned(tmp_path, name, content):
    bad, good = (run_dir(tmp_path / name, 1, 2, 3, 4, keep_last=1) for name in ("bad", "good"))
    (bad / name).write_bytes(content)
    cleaned(Root(kind="runs", path=tmp_path))
    assert steps(good) == [4]
    assert steps(bad)[-1] == 4
    if name == "config.json":
        assert steps(bad) == [1, 2, 3, 4]


@pytest.mark.parametrize("pid", [-1, 0, 2**31, 2**64, 1e300, "7", None, [1], True])
def test_a_lease_with_an_odd_process_id_counts_while_it_is_fresh(tmp_path, pid):
    log = write(tmp_path / "a.log", age_h=900)
    record = tmp_path / FOLDER_NAME / "a.log.0123.json"
    write(record, content=json.dumps({"name": "a.log", "pid": pid, "host": socket.gethostname()}).encode())
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        assert live_names(folder) == {"a.log"}
        os.utime(record, (1, 1))
        assert live_names(folder) == set()
    finally:
        os.close(folder)
    assert cleaned(Root(kind="logs", path=tmp_path)) == [log]


def test_an_error_in_one_run_is_logged_and_the_rest_is_cleaned(tmp_path, monkeypatch, caplog):
    bad, good = (run_dir(tmp_path / "runs" / name, 1, 2, 3, keep_last=1) for name in ("bad", "good"))
    log = write(tmp_path / "logs" / "old.log", age_h=900)
    real = runs.old_checkpoints

    def old_checkpoints(root, run, rule, before):
        if run == ("bad",):
            raise RecursionError("maximum depth")
        return real(root, run, rule, before)

    monkeypatch.setattr(runs, "old_checkpoints", old_checkpoints)
    rules = settings(Root(kind="runs", path=tmp_path / "runs"), Root(kind="logs", path=log.parent))
    make_space(rules, tmp_path / "runs", 1)
    assert (steps(bad), steps(good), log.exists()) == ([1, 2, 3], [3], False)
    assert f"{bad}: skipped: RecursionError: maximum depth" in caplog.text


def test_a_partial_file_with_two_names_is_kept(tmp_path):
    half = write(tmp_path / "a.partial", age_h=900)
    os.link(half, tmp_path / "b.partial")
    assert cleaned(Root(kind="partial", path=tmp_path)) == []


@pytest.mark.parametrize("below", ["", "run", "run/checkpoints"])
def test_a_partial_checkpoint_of_a_live_trainer_is_kept_regardless_of_age(tmp_path, below):
    run = run_dir(tmp_path / "run", 1)
    half = run / "checkpoints" / "step_00000002.orbax-checkpoint-tmp"
    write(half / "params" / "d" / "data", age_h=5000)
    aged(half, 5000)
    root = Root(kind="partial", path=tmp_path / below, names=("*.orbax-checkpoint-tmp*",))
    with writing(run):
        assert cleaned(root) == []
    assert cleaned(root) == [half]


@pytest.mark.parametrize(
    "path", ["/etc", "/etc/x", "/usr/lib", "/proc/1", "/dev", "/dev/shm", "/root", "/home", "/sys/x"]
)
def test_folders_of_the_system_and_of_people_are_no_roots(path):
    with pytest.raises(ValueError, match=f"{path}: .*must not be a root"):
        Root(kind="logs", path=Path(path))


def test_without_a_file_echotts_own_folders_and_live_runs_are_watched_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr("echotts.disk.settings.TPU_LOGS", tmp_path / "tpu_logs")
    run = run_dir(tmp_path / "runs" / "live", 1, 2, 3, 4, keep_last=2)
    idle = run_dir(tmp_path / "runs" / "idle", 1, 2, 3, 4, keep_last=2)
    with writing(run):
        assert run in live_runs()
        watched = with_live_runs(default_settings(), [path for path in live_runs() if path.is_relative_to(tmp_path)])
    assert [(root.kind, root.path.relative_to(tmp_path).as_posix()) for root in watched.roots] == [
        ("shards", "cache/echotts/shards"),
        ("runs", "cache/echotts/runs"),
        ("logs", "tpu_logs"),
        ("hub", "cache/huggingface/hub"),
        ("runs", "runs/live"),
    ]
    always = settings(*watched.roots)
    Watchdog(always).run_pass()
    assert (steps(run), steps(idle)) == ([3, 4], [1, 2, 3, 4])


def test_the_published_command_starts_without_a_file_and_prints_roots_and_limits(tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "PATH": path}
    with (tmp_path / "watchdog.log").open("w") as log:
        watch = subprocess.Popen(
            ["nohup", "python3", "disk_watchdog.py"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    deadline = time.monotonic() + 60
    while "/tmp/tpu_logs" not in (said := (tmp_path / "watchdog.log").read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    watch.terminate()
    assert watch.wait(30) == 0
    assert "cleaning starts at 85% used or less than 5 GiB free and stops at 75%" in said
    assert f"root shards  {tmp_path}/echotts/shards (does not exist)" in said
