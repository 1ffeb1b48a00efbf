"""Leases: their targets are not deleted while they live, and they end with their process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from echotts.rundir import leases
from echotts.rundir.leases import LeaseError, is_leased, lease, live_names, lock_alone
from tests.disk.layout import hub_revision, write

HOLD = """
import sys, time
from echotts.rundir.leases import lease
with lease(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def folder(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def leased(path: Path) -> bool:
    with folder(path.parent) as here:
        return is_leased(here, path.name)


def records(path: Path) -> list[Path]:
    return sorted((path.parent / ".leases").glob("*.json"))


@contextlib.contextmanager
def held_by_another(path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_lease_holds_a_file_or_folder_and_leaves_nothing_behind(tmp_path, is_folder):
    path = tmp_path / "thing"
    path.mkdir() if is_folder else path.touch()
    assert not leased(path)
    with lease(path), lease(path):
        assert leased(path)
        assert len(records(path)) == 2
        said = json.loads(records(path)[0].read_text())
        assert (said["name"], said["pid"]) == ("thing", os.getpid())
        assert said["started"] == leases.process_start(os.getpid())
    assert not leased(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thing"]


def test_a_killed_process_holds_nothing(tmp_path):
    path = write(tmp_path / "thing")
    with held_by_another(path) as process:
        assert leased(path)
        process.send_signal(signal.SIGSTOP)  # it does nothing, not even its heartbeat, and still holds it
        assert leased(path)
        process.kill()
        process.wait()
        assert len(records(path)) == 1
        assert not leased(path)
        with lease(path):  # removes the dead process's record
            assert [json.loads(record.read_text())["pid"] for record in records(path)] == [os.getpid()]


def test_the_lock_alone_holds_where_no_record_can_be_written(tmp_path):
    path = write(tmp_path / "thing")
    (tmp_path / ".leases").touch()
    with lease(path):
        with folder(tmp_path) as here:
            assert live_names(here) == set()
        assert leased(path)
    assert not leased(path)


def record(path: Path, **said) -> Path:
    about = {"name": path.name, "pid": os.getpid(), "started": leases.process_start(os.getpid())}
    content = json.dumps(about | leases.this_machine() | said).encode()
    return write(path.parent / ".leases" / f"{path.name}.0.json", content=content)


def test_the_record_alone_holds_where_the_lock_does_not_reach(tmp_path):
    path = write(tmp_path / "thing")
    record(path)
    assert leased(path)


def test_a_process_id_that_was_given_to_another_holds_nothing(tmp_path):
    path = write(tmp_path / "thing")
    record(path, started=1)
    assert not leased(path)


def test_a_record_of_another_machine_holds_while_its_heart_beats(tmp_path):
    path = write(tmp_path / "thing")
    file = record(path, host="elsewhere", pid=2**22 + 1)
    assert leased(path)
    then = time.time() - leases.STALE_S - 1
    os.utime(file, (then, then))
    assert not leased(path)


def test_half_a_record_holds_while_it_is_fresh(tmp_path):
    path = write(tmp_path / "thing")
    file = write(tmp_path / ".leases" / "thing.0.json", content=b'{"name": "th')
    assert leased(path)
    then = time.time() - leases.STALE_S - 1
    os.utime(file, (then, then))
    assert not leased(path)


def test_who_is_killed_while_taking_a_lease_holds_nothing_and_is_cleared_away_later(tmp_path):
    path = write(tmp_path / "thing")
    half = write(tmp_path / ".leases" / "thing.0.tmp", content=b"")
    assert not leased(path)
    with lease(path):
        assert half.exists()
    then = time.time() - leases.STALE_S - 1
    os.utime(half, (then, then))
    with lease(path):
        assert not half.exists()


def test_the_heart_beats_while_a_lease_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.02)
    path = write(tmp_path / "thing")
    with lease(path):
        (file,) = records(path)
        os.utime(file, (1, 1))
        deadline = time.monotonic() + 20
        while file.stat().st_mtime < time.time() - 60 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime > time.time() - 60
    deadline = time.monotonic() + 20
    while any(thread.name == "leases" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.name == "leases" for thread in threading.enumerate())


def test_a_target_being_deleted_cannot_be_leased(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "WAIT_S", 0.1)
    path = write(tmp_path / "thing")
    with folder(path) as descriptor:
        assert lock_alone(descriptor)
        with pytest.raises(LeaseError, match="thing: is being deleted to free disk space"), lease(path):
            pass


def test_a_lease_waits_for_a_check_and_fails_if_the_target_was_deleted(tmp_path):
    kept, gone = write(tmp_path / "kept"), write(tmp_path / "gone")
    outcome = {}

    def take(path):
        try:
            with lease(path):
                outcome[path.name] = "leased"
        except FileNotFoundError:
            outcome[path.name] = "gone"

    with folder(kept) as one, folder(gone) as other:
        assert lock_alone(one) and lock_alone(other)
        threads = [threading.Thread(target=take, args=(path,)) for path in (kept, gone)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        assert outcome == {}
        gone.rename(tmp_path / "trash")
    for thread in threads:
        thread.join()
    assert outcome == {"kept": "leased", "gone": "gone"}


def test_a_lease_applies_to_the_file_that_has_the_name_once_locked(tmp_path, monkeypatch):
    path = write(tmp_path / "thing")
    (tmp_path / ".leases").touch()  # the lock alone
    really = leases._try_shared

    def lock_after_a_swap(descriptor):
        monkeypatch.setattr(leases, "_try_shared", really)
        path.rename(tmp_path / "trash")
        write(path)
        return really(descriptor)

    monkeypatch.setattr(leases, "_try_shared", lock_after_a_swap)
    with lease(path):
        assert leased(path)


def test_a_lease_through_a_symlink_is_one_of_the_thing_itself(tmp_path):
    path = write(tmp_path / "real" / "thing")
    (tmp_path / "link").symlink_to(path)
    with lease(tmp_path / "link"):
        assert leased(path)
        assert len(records(path)) == 1


def test_a_file_in_the_hub_cache_leases_its_repository_and_writes_nothing_there(tmp_path):
    snapshot = hub_revision(tmp_path, "org/model", "a" * 40, {"model.safetensors": b"weights"}, age_h=0)
    before = sorted(tmp_path.rglob("*"))
    with lease(snapshot / "model.safetensors"):
        assert sorted(tmp_path.rglob("*")) == before
        assert leased(tmp_path / "models--org--model")
        assert leased((snapshot / "model.safetensors").resolve())


def test_a_missing_file_cannot_be_leased(tmp_path):
    with pytest.raises(FileNotFoundError), lease(tmp_path / "nothing"):
        pass
