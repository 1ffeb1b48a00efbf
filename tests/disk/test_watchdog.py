"""Passes: start, end, output and requests to trainers; on a disk that a test can fill."""

import json
import logging
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from echotts.cli.app import run
from echotts.cli.watchdog import main
from echotts.disk import candidates, hub, watchdog
from echotts.disk.remove import KeptError
from echotts.disk.settings import Root
from echotts.disk.watchdog import Watchdog, make_space
from echotts.rundir import pause
from echotts.rundir.free_space import Space, measure
from echotts.rundir.layout import writing
from echotts.rundir.leases import lease
from tests.disk.layout import hub_revision, run_dir, settings, steps, write

ROOT = Path(__file__).parents[2]
DISK = 10_000_000  # bytes of the simulated disk


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A folder that passes for a disk of DISK bytes and 1000 inodes; `hold(n)` fills that many bytes of it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def fake(place: object) -> Space:
        files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        used = sum(path.stat().st_size for path in files)
        return Space(used, DISK - used, len(files), 1000 - len(files))

    for module in (watchdog, pause):
        monkeypatch.setattr(module, "measure", fake)
    return folder


def logs(disk, count=10, size=DISK // 10, age_h=100.0):
    for number in range(count):
        write(disk / "logs" / f"{number}.log", size, age_h=age_h - number)
    return Root(kind="logs", path=disk / "logs")


def lines(run, kind="watchdog."):
    path = run / "metrics" / f"{socket.gethostname()}.{kind}jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_space_equals_df(tmp_path):
    said = subprocess.run(["df", "--output=pcent,avail", "-B1", tmp_path], capture_output=True, text=True, check=True)
    percent, free = said.stdout.split()[-2:]
    found = measure(tmp_path)
    of_bytes = found.used_bytes / (found.used_bytes + found.free_bytes)
    assert abs(100 * of_bytes - float(percent.rstrip("%"))) <= 1.5
    assert abs(found.free_bytes - int(free)) < 1e9  # others write, too
    assert found.used_share >= of_bytes


def test_space_counts_inodes_as_bytes_where_they_are_fewer():
    assert Space(used_bytes=1, free_bytes=9, used_inodes=80, free_inodes=20).used_share == 0.8
    freed = Space(used_bytes=9, free_bytes=1, used_inodes=1, free_inodes=9).after_freeing(4, 1)
    assert (freed.used_share, freed.free_bytes, freed.free_inodes) == (0.5, 5, 10)


def test_cleaning_starts_at_85_percent_and_stops_at_75(disk):
    rules = settings(logs(disk, 8), start=0.85, stop=0.75)
    assert Watchdog(rules).run_pass() == []  # 80 %
    write(disk / "more", DISK // 20)
    gone = Watchdog(rules).run_pass()  # 85 %
    assert [action.path.name for action in gone] == ["0.log"]
    assert Watchdog(rules).run_pass() == []


def test_a_pass_ended_by_its_limit_continues_next_time_until_75_percent(disk):
    rules = settings(logs(disk), start=0.85, stop=0.75, max_files_per_pass=1)
    dog = Watchdog(rules)
    assert [[action.path.name for action in dog.run_pass()] for _ in range(4)] == [["0.log"], ["1.log"], ["2.log"], []]
    assert Watchdog(rules).run_pass() == []


def test_a_pass_deletes_no_more_bytes_than_its_cap_but_at_least_one_thing(disk):
    for cap, count in ((0.25, 2), (0.001, 1)):
        rules = settings(logs(disk), start=0.85, stop=0.1, max_gib_per_pass=cap * DISK / 2**30)
        assert len(Watchdog(rules).run_pass()) == count


def test_the_cap_of_files_holds_over_all_kinds_of_roots(disk):
    rules = settings(logs(disk, 1), Root(kind="partial", path=disk / "staging"), start=0.5, max_files_per_pass=1)
    write(disk / "staging" / "a.partial", DISK // 2, age_h=9)
    assert [action.path.name for action in Watchdog(rules).run_pass()] == ["a.partial"]


@pytest.mark.parametrize("least", [{"min_free_gib": 0.45 * DISK / 2**30}, {"min_free_inodes": 996}])
def test_too_few_free_bytes_or_inodes_start_it_too(disk, least):
    rules = settings(logs(disk, 6), start=0.85, stop=0.75, **least)
    assert len(Watchdog(rules).run_pass()) == 1 + (least.get("min_free_inodes", 0) > 0)


def test_space_for_a_save_is_freed_in_as_many_passes_as_needed(disk):
    rules = settings(logs(disk, 5), start=0.85, stop=0.75, max_files_per_pass=1)
    make_space(rules, disk, 4 * DISK // 10)
    assert len(list((disk / "logs").iterdir())) == 5
    make_space(rules, disk, 7 * DISK // 10)
    assert len(list((disk / "logs").iterdir())) == 3


def test_a_dry_run_lists_deletions_now_and_later_and_deletes_nothing(disk):
    rules = settings(logs(disk, 9), start=0.85, stop=0.75)
    found = Watchdog(rules, dry_run=True).run_pass()
    assert [(action.path.name, action.now) for action in found] == [(f"{n}.log", n < 2) for n in range(9)]
    assert len(list((disk / "logs").iterdir())) == 9


def test_each_action_is_a_line_in_the_metrics_of_its_run_or_of_those_that_are_written(disk):
    one, two = (run_dir(disk / "runs" / name, 1, 2, keep_last=1) for name in ("one", "two"))
    rules = settings(logs(disk, 1), Root(kind="runs", path=disk / "runs"))
    with writing(two):
        Watchdog(rules).run_pass()
    assert (steps(one), steps(two)) == ([2], [2])
    messages = [[line["message"].split(":")[0] for line in lines(run)] for run in (one, two)]
    own = [str(run / "checkpoints" / "step_00000001") for run in (one, two)]
    assert messages == [[own[0]], [str(disk / "logs" / "0.log"), own[1]]]
    line = lines(two)[0]
    assert (line["event"], line["process"], line["step"]) == ("disk_cleaned", -1, 2)
    assert line["disk/freed_bytes"] >= DISK // 10
    assert line["host/disk_free_bytes"] > 0 and 0 < line["host/disk_free_share"] <= 1
    assert line["message"].endswith("0.log: old log, untouched for 4 days")


def test_a_name_that_would_upset_a_terminal_or_a_line_is_escaped(disk):
    write(disk / "logs" / "a\x1b[2J\nb\udcff.log", age_h=100)
    (action,) = Watchdog(settings(Root(kind="logs", path=disk / "logs"))).run_pass()
    assert action.what == f"{disk}/logs/a\\x1b[2J\\nb\\udcff.log: old log, untouched for 4 days"


def test_many_actions_are_a_hundred_lines_and_one_that_counts_the_rest(disk):
    run = run_dir(disk / "run", 1)
    Watchdog(settings(logs(disk, 120, 100, 1000.0), Root(kind="runs", path=run))).run_pass()
    found = lines(run)
    assert len(found) == 101
    assert found[-1]["message"].startswith("20 more like ")


def test_the_names_in_its_lines_are_listed_with_the_metrics(disk):
    metrics = pytest.importorskip("echotts.rundir.metrics")
    run = run_dir(disk / "run", 1)
    Watchdog(settings(logs(disk, 1), Root(kind="runs", path=run))).run_pass()
    (line,) = lines(run)
    assert line.pop("event") in metrics.EVENTS
    assert set(line) - {"time", "step", "process", "message"} <= set(metrics.METRICS)


def test_at_97_percent_trainers_are_asked_to_wait_until_there_is_space(disk, caplog):
    run, idle = run_dir(disk / "runs" / "run", 1), run_dir(disk / "runs" / "idle", 1)
    filler = write(disk / "data", int(0.975 * DISK))
    dog = Watchdog(settings(Root(kind="runs", path=disk / "runs"), start=0.85, stop=0.75))
    with writing(run), caplog.at_level(logging.WARNING, logger="echotts"):
        write(filler, int(0.96 * DISK))
        dog.run_pass()
        assert pause.asked(run) is None
        write(filler, int(0.975 * DISK))
        dog.run_pass()
        dog.run_pass()
        assert pause.full(run) is not None
        assert pause.asked(idle) is None
        assert pause.asked(run) == pause.Request(place=str(disk / "runs"), below=0.95)
        assert [line["event"] for line in lines(run)] == ["disk_full"]
        assert caplog.text.count("nothing more can be deleted") == 1
        write(filler, int(0.96 * DISK))
        dog.run_pass()
        assert pause.full(run) is not None
        write(filler, int(0.94 * DISK))
        assert pause.full(run) is None  # the trainer checks by itself, in case the watchdog is gone
        pause.ask(run, pause.Request(place=str(disk)))
        dog.run_pass()
        assert pause.asked(run) is None


def test_hosts_that_share_a_run_directory_do_not_touch_each_others_requests(disk, monkeypatch):
    run = run_dir(disk / "run", 1)
    filler = write(disk / "data", int(0.98 * DISK))
    dog = Watchdog(settings(Root(kind="runs", path=disk / "run"), start=0.85, stop=0.75))
    with writing(run):
        dog.run_pass()
        filler.unlink()
        own = pause.asked(run)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
            assert own is not None and pause.asked(run) is None and pause.full(run) is None
            dog.run_pass()
        assert pause.asked(run) == own


def test_an_empty_pause_file_counts_as_a_request(disk):
    run = run_dir(disk / "run", 1)
    write(disk / "data", int(0.96 * DISK))
    pause.request_path(run).touch()
    assert pause.asked(run) == pause.Request(place=str(run), below=0.95)
    assert pause.full(run) is not None
    assert not pause.ask(run, pause.Request(place="elsewhere"))


def test_hub_revisions_are_deleted_by_the_hub_itself_and_stay_while_they_are_read(tmp_path):
    cache = tmp_path / "hub"
    for letter in "abc":
        name = {"a": "org/read", "b": "org/open", "c": "org/free"}[letter]
        hub_revision(cache, name, letter * 40, {"w": letter.encode() * 5000}, age_h=500, ref="main")
    hub_revision(cache, "org/read", "d" * 40, {"w": b"the revision before"}, age_h=600)
    rules = settings(Root(kind="hub", path=cache))
    opened = cache / "models--org--open" / "snapshots" / ("b" * 40) / "w"
    with lease(cache / "models--org--read" / "snapshots" / ("a" * 40) / "w"), opened.open("rb"):
        gone = Watchdog(rules).run_pass()
    assert [(action.path.name, action.freed_bytes) for action in gone] == [("c" * 40, 5000)]
    assert sorted(path.name for path in cache.iterdir()) == ["models--org--open", "models--org--read"]
    assert len(Watchdog(rules).run_pass()) == 3


def test_a_hub_revision_that_was_read_since_it_was_found_is_kept(tmp_path, monkeypatch):
    snapshot = hub_revision(tmp_path, "org/model", "a" * 40, {"w": b"weights"}, age_h=500)
    rule = Root(kind="hub", path=tmp_path)
    found = hub.unused_revisions

    def find_then_read(*arguments):
        revisions = found(*arguments)
        write((snapshot / "w").resolve(), content=b"weights", age_h=300)
        return revisions

    monkeypatch.setattr(candidates.hub, "unused_revisions", find_then_read)
    assert Watchdog(settings(rule)).run_pass() == []
    assert (snapshot / "w").read_bytes() == b"weights"


def test_a_root_that_this_host_does_not_have_is_passed_over(disk):
    rules = settings(Root(kind="runs", path=disk / "nothing"), logs(disk, 1))
    assert len(Watchdog(rules).run_pass()) == 1


def test_a_failed_deletion_does_not_end_the_pass(disk, monkeypatch):
    rules = settings(logs(disk, 3))
    really = candidates.OpenRoot.remove

    def sometimes(self, found, *more):
        if found.name == "0.log":
            raise KeptError("leased")
        return really(self, found, *more)

    monkeypatch.setattr(candidates.OpenRoot, "remove", sometimes)
    assert [action.path.name for action in Watchdog(rules).run_pass()] == ["1.log", "2.log"]


def config(tmp_path, text="start = 0.000001\nstop = 0.000001\nmin_free_gib = 0\nmin_free_inodes = 0\n"):
    write(tmp_path / "logs" / "old.log", 5000, age_h=30)
    path = tmp_path / "watchdog.toml"
    path.write_text(f'[limits]\n{text}\n[[root]]\nkind = "logs"\npath = "{tmp_path}/logs"\n')
    return path


def test_the_command_prints_path_bytes_and_reason_and_in_a_dry_run_deletes_nothing(tmp_path, capsys):
    path = config(tmp_path)
    assert main(["--config", str(path), "--dry_run"]) == 0
    out = capsys.readouterr().out
    old = re.escape(str(tmp_path / "logs" / "old.log"))
    assert re.search(rf"^now +8192 bytes  {old}: old log, untouched for 30\.0 h$", out, re.MULTILINE)
    assert "1 would be deleted now, 0.0 MB; 0 more can be" in out
    assert (tmp_path / "logs" / "old.log").exists()
    assert main(["--config", str(path), "--once"]) == 0
    assert re.search(rf"^deleted +8192 bytes  {old}: old log", capsys.readouterr().out, re.MULTILINE)
    assert not (tmp_path / "logs" / "old.log").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"), [(["--nonsense"], 2, "nonsense"), (["--config", "/no.toml"], 1, "/no.toml")]
)
def test_a_wrong_call_is_one_line(capsys, arguments, code, said):
    with pytest.raises(SystemExit) as stop:
        run(main, arguments)
    assert stop.value.code == code
    err = capsys.readouterr().err
    assert err.startswith("echotts: ") and said in err and err.count("\n") == 1


def test_the_script_runs_until_stopped_and_never_imports_jax(tmp_path):
    path = config(
        tmp_path, "start = 0.000001\nstop = 0.000001\nmin_free_gib = 0\nmin_free_inodes = 0\ninterval_s = 0.05"
    )
    program = (
        "import runpy, sys, atexit\n"
        "names = ('jax', 'numpy', 'huggingface_hub')\n"
        "atexit.register(lambda: print('heavy:', [name for name in names if name in sys.modules]))\n"
        f"sys.argv = ['disk_watchdog.py', '--config', {str(path)!r}]\n"
        "runpy.run_path('disk_watchdog.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        limits, root, space, first = (process.stdout.readline() for _ in range(4))
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert limits.startswith("cleaning starts at") and root.startswith("root logs") and "% used" in space
    assert first.startswith("deleted")
    assert (process.returncode, err) == (0, "")
    assert out.endswith("heavy: []\n")
