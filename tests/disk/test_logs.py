"""Logs with a size limit, even if the disk has space."""

import os
import threading

import pytest

from echotts.disk.remove import OpenRoot
from echotts.disk.settings import Root, load_settings, with_run
from echotts.disk.watchdog import Watchdog
from echotts.rundir.leases import lease
from tests.disk.layout import run_dir, settings, write

MIB = 2**20


def capped(folder, mib: float) -> Root:
    return Root(kind="logs", path=folder, names=("*",), max_gib=mib / 1024)


def pass_over(*roots: Root, dry_run: bool = False):
    roomy = settings(*roots, start=0.999, stop=0.998, pause=1.0, resume=0.999)  # the disk itself has room
    return Watchdog(roomy, dry_run=dry_run).run_pass()


def taken(path) -> int:
    return path.stat().st_blocks * 512


def test_logs_beyond_their_cap_go_oldest_first_however_young(tmp_path):
    for hours in range(5):
        write(tmp_path / "logs" / "deep" / f"{hours}.log", MIB, age_h=hours / 10)
    planned = pass_over(capped(tmp_path / "logs", 2.5), dry_run=True)
    assert [action.path.name for action in planned] == ["4.log", "3.log", "2.log"]
    assert len(list(tmp_path.rglob("*.log"))) == 5
    done = pass_over(capped(tmp_path / "logs", 2.5))
    assert [action.path for action in done] == [action.path for action in planned]
    assert sum(action.freed_bytes for action in done) == 3 * MIB
    assert sorted(path.name for path in tmp_path.rglob("*.log")) == ["0.log", "1.log"]
    assert pass_over(capped(tmp_path / "logs", 2.5)) == []


def test_without_a_limit_recent_logs_are_kept_if_the_disk_has_space(tmp_path):
    write(tmp_path / "logs" / "a.log", 3 * MIB)
    assert pass_over(capped(tmp_path / "logs", 0)) == []


@pytest.mark.parametrize("mode", ["ab", "r+b"])  # r+b: without O_APPEND a cut file would grow back to its length
def test_the_beginning_of_an_open_log_is_freed_without_affecting_its_writer(tmp_path, mode):
    path = write(tmp_path / "logs" / "libtpu.INFO", content=b"a" * 4 * MIB)
    old = write(tmp_path / "logs" / "old.log", MIB)
    with path.open(mode, buffering=0) as writer:
        writer.seek(0, os.SEEK_END)
        writer.write(b"b" * 4 * MIB)
        first, second = pass_over(capped(tmp_path / "logs", 3))
        assert first.path == old and not old.exists()  # closed files go first
        assert second.path == path and second.freed_bytes == 5 * MIB
        writer.write(b"the end")
    content = path.read_bytes()
    assert len(content) == 8 * MIB + 7 and content.endswith(b"b" * 3 * MIB + b"the end")
    assert taken(path) <= 3 * MIB + 8192


def test_the_end_of_an_open_log_is_kept_even_beyond_the_limit_and_holes_are_not_punched_twice(tmp_path):
    path = write(tmp_path / "logs" / "a.log", 4 * MIB)
    with path.open("ab", buffering=0) as writer:
        [action] = pass_over(capped(tmp_path / "logs", 0.1))
        assert action.freed_bytes == 3 * MIB
        assert pass_over(capped(tmp_path / "logs", 0.1)) == []
        writer.write(b"x" * 2 * MIB)
        [action] = pass_over(capped(tmp_path / "logs", 0.1))
        assert action.freed_bytes == 2 * MIB and path.stat().st_size == 6 * MIB


def test_if_one_open_log_cannot_shrink_the_next_one_does(tmp_path):
    sizes = {"a": 4 * MIB, "b": 5 * MIB, "small": MIB // 2}
    paths = [write(tmp_path / "logs" / f"{name}.log", size) for name, size in sizes.items()]
    with paths[0].open("ab"), paths[1].open("ab"), paths[2].open("ab"):
        planned = pass_over(capped(tmp_path / "logs", 3), dry_run=True)
        done = pass_over(capped(tmp_path / "logs", 3))
    assert [(action.path.name, action.freed_bytes) for action in done] == [
        ("b.log", 4 * MIB),
        ("a.log", 5 * MIB // 2),
    ]
    assert [(action.path, action.freed_bytes) for action in planned] == [(one.path, one.freed_bytes) for one in done]


def test_a_pass_waits_for_another_over_the_same_logs(tmp_path):
    write(tmp_path / "logs" / "a.log", 3 * MIB)
    with OpenRoot(tmp_path / "logs") as other:
        assert other.lock()
        ending = threading.Timer(0.3, other.close)
        ending.start()
        [action] = pass_over(capped(tmp_path / "logs", 1))
        ending.join()
    assert action.freed_bytes == 3 * MIB


def test_leased_logs_and_files_behind_links_are_not_freed(tmp_path):
    elsewhere = write(tmp_path / "elsewhere.log", 3 * MIB)
    leased = write(tmp_path / "logs" / "leased.log", 3 * MIB)
    (tmp_path / "logs" / "link.log").symlink_to(elsewhere)
    with lease(leased):
        assert pass_over(capped(tmp_path / "logs", 1)) == []
    assert taken(leased) == taken(elsewhere) == 3 * MIB


def test_a_cap_is_for_logs_alone(tmp_path):
    with pytest.raises(ValueError, match="max_gib applies to kind logs, not to shards"):
        Root(kind="shards", path=tmp_path, max_gib=1.0)
    with pytest.raises(ValueError, match="max_gib, keep_last and keep_every must not be negative"):
        Root(kind="logs", path=tmp_path, max_gib=-1.0)
    path = tmp_path / "watchdog.toml"
    path.write_text(f'[[root]]\nkind = "logs"\npath = "{tmp_path}"\nmax_gib = 5\n')
    assert load_settings(path).roots[0].max_gib == 5.0


def test_a_run_is_added_to_the_roots_unless_they_hold_it(tmp_path):
    logs = settings(Root(kind="logs", path=tmp_path / "logs"))
    assert [(root.kind, root.path) for root in with_run(logs, tmp_path / "run").roots[1:]] == [
        ("runs", run_dir(tmp_path / "run"))
    ]
    runs = settings(Root(kind="runs", path=tmp_path / "runs", keep_last=7))
    assert with_run(runs, tmp_path / "runs" / "one") == runs
    with pytest.raises(ValueError, match="overlaps"):
        with_run(logs, tmp_path)
