"""Reasons why start fails, with the worker, before any process is started."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from launch.answers import Answer
from launch.preflight import problems
from launch.settings import Settings
from tests.launch.conftest import World

GOOD = {
    "time": "1000",
    "free_gb": "90",
    "release": "abc",
    "token": "none",
    "version_python": "3.11.7",
    "version_jax": "0.10.2",
    "port_8476": "free",
    "chips": "4",
    "holders": "none",
    "lock": "none",
}
PORTS = "8476"


def workers(**odd: str) -> dict[int, Answer]:
    """Eight workers that are alike, but for number 3."""
    return {worker: Answer(worker, GOOD | (odd if worker == 3 else {}), code=0) for worker in range(8)}


def reasons(**odd: str) -> list[str]:
    return problems(workers(**odd), Settings(accelerator_type="v4-64"), ports=PORTS, elapsed_s=5)


def test_workers_that_are_alike_may_start() -> None:
    assert reasons() == []


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"version_jax": "0.10.1"}, "jax differs: 0.10.1 on worker 3, 0.10.2 on the others: run sync again"),
        ({"version_python": "3.12.1"}, "python differs: 3.12.1 on worker 3"),
        ({"release": "old"}, "releases differ: old on worker 3"),
        ({"token": "aa"}, "Hugging Face tokens differ: aa on worker 3"),
        ({"free_gb": "19"}, "less than 20 GB are free (min_free_gb) on worker 3"),
        ({"time": "1036"}, "the clock of worker 3 is 36 s from the others'"),
        ({"time": "900"}, "the clock of worker 3 is 100 s from the others'"),
        ({"port_8476": "used"}, "port 8476 is taken on worker 3: stop"),
        ({"chips": "3"}, "numbers of TPU chips differ: 3 on worker 3, 4 on the others"),
        ({"chips": "0"}, "no TPU chip on worker 3"),
        ({"holders": "77 78 "}, "process 77 78 on worker 3 holds the TPU"),
        ({"lock": "kept"}, "/tmp/libtpu_lockfile may belong to a live process on worker 3"),
    ],
)
def test_a_deviating_worker_is_named_with_its_difference(odd, said) -> None:
    assert any(reason.startswith(said) for reason in reasons(**odd)), reasons(**odd)


def test_clocks_within_the_time_it_took_to_ask_are_no_reason() -> None:
    assert reasons(time="1034") == []


def test_a_different_tpu_than_configured_is_detected() -> None:
    said = problems(workers(), Settings(accelerator_type="v4-32"), ports=PORTS, elapsed_s=5)
    assert said == ["v4-32 has 16 chips on 4 hosts, but 32 chips on 8 were found: is echotts another TPU?"]


def test_two_reasons_are_both_said() -> None:
    assert len(reasons(chips="0", free_gb="0")) == 3


def refuse(world: World, change: Callable[[World], object]) -> str:
    change(world)
    said = world.call("start", *world.command(), code=1)
    assert not world.job(0).exists()
    return said


def test_the_script_finds_ports_devices_and_clocks_that_are_wrong(world: World) -> None:
    world.ready()
    table = world.home(1) / "net" / "tcp6"
    listens = "  1: 00000000000000000000000000000000:211C 00000000000000000000000000000000:0000 {} 0 0 0 0 0 0\n"
    connected = listens.format("01")
    assert "port 8476 is taken on worker 1" in refuse(world, lambda w: table.write_text(listens.format("0A")))
    table.write_text(connected)
    assert "numbers of TPU chips differ" in refuse(world, lambda w: (w.home(1) / "dev" / "accel2").unlink())
    (world.home(1) / "dev" / "accel2").touch()
    date = world.home(1) / "bin" / "date"
    late = '#!/bin/sh\n[ "$1" = +%s ] && exec /bin/date -d "10 minutes" +%s\nexec /bin/date "$@"\n'
    said = refuse(world, lambda w: (date.write_text(late), date.chmod(0o755)))
    assert "s from the others'" in said
    date.unlink()
    world.call("start", *world.command())


def test_a_stale_lock_file_is_removed_and_a_held_one_kept(world: World) -> None:
    world.ready()
    lock = world.home(0) / "libtpu_lockfile"
    lock.touch()
    program = f"import signal\nfile = open({str(lock)!r})\nprint('held', flush=True)\nsignal.pause()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            said = refuse(world, lambda w: None)
            assert f"process {holder.pid} on worker 0 holds the TPU" in said
            assert lock.exists()
        finally:
            holder.terminate()
    said = world.call("start", *world.command())
    assert "removed /tmp/libtpu_lockfile on worker 0: it was stale" in said
    assert not lock.exists()


def test_a_lock_file_is_kept_if_not_all_processes_can_be_checked(world: World) -> None:
    world.ready()
    lock = world.home(0) / "libtpu_lockfile"
    lock.touch()
    for name, text in (("id", "echo 1000"), ("sudo", "exit 1")):
        path = world.home(0) / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    assert "libtpu_lockfile may belong to a live process on worker 0" in refuse(world, lambda w: None)
    assert lock.exists()
